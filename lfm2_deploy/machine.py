"""What this computer is: cores, instructions, memory, as far as its system tells.

What is not known is None and is shown as unknown, never guessed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What decides how fast int4 and int8 arithmetic runs, as Linux spells it.
X86_FLAGS = ("avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_FLAGS = ("asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
_MAC_FLAGS = {
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "sme": "hw.optional.arm.FEAT_SME",
    "avx2": "hw.optional.avx2_0",
    "avx512f": "hw.optional.avx512f",
}
# PF_* numbers of IsProcessorFeaturePresent; it has none for VNNI.
_WINDOWS_FLAGS = {"avx2": 40, "avx512f": 41, "asimddp": 43}


@dataclass(frozen=True, slots=True)
class Machine:
    """This computer; None where the system does not tell.

    Args:
        system: operating system and architecture.
        cpu: the processor's name.
        physical_cores: real cores.
        logical_cores: with hyper-threads.
        usable_cores: those this process may use.
        instructions: those it has, of those the system was asked about.
        not_found: the others the system was asked about.
        memory_total_bytes: all of it.
        memory_available_bytes: what can be had without swapping.
    """

    system: str
    cpu: str | None
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int | None
    instructions: tuple[str, ...]
    not_found: tuple[str, ...]
    memory_total_bytes: int | None
    memory_available_bytes: int | None


def describe_machine() -> Machine:
    """Ask the system about this computer."""
    if sys.platform == "linux":
        return _describe_linux()
    if sys.platform == "darwin":
        return _describe_mac()
    if sys.platform == "win32":
        return _describe_windows()
    return _assemble(None, None, {}, None, None)


def find_cache() -> Path:
    """The folder for what this package can make again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lfm2-deploy"


def measure_memory() -> tuple[int | None, int | None]:
    """Bytes this process holds in memory, now and at most; None where it is not known."""
    if sys.platform == "linux":
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", _read("/proc/self/status"), re.M))
        now, most = found.get("VmRSS"), found.get("VmHWM")
        return now and int(now) * 1024, most and int(most) * 1024
    if sys.platform == "win32":
        return _measure_windows_memory()
    import resource

    return None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _assemble(
    cpu: str | None,
    physical: int | None,
    flags: Mapping[str, bool],
    memory_total: int | None,
    memory_available: int | None,
) -> Machine:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    asked = [flag for flag in (ARM_FLAGS if arm else X86_FLAGS) if flag in flags]
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=cpu,
        physical_cores=physical,
        logical_cores=os.cpu_count(),
        usable_cores=count_usable_cores(),
        instructions=tuple(flag for flag in asked if flags[flag]),
        not_found=tuple(flag for flag in asked if not flags[flag]),
        memory_total_bytes=memory_total,
        memory_available_bytes=memory_available,
    )


def count_usable_cores() -> int | None:
    """Logical cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _describe_linux() -> Machine:
    cpu = parse_cpuinfo(_read("/proc/cpuinfo"))
    memory = parse_meminfo(_read("/proc/meminfo"))
    asked = () if cpu.flags is None else (*X86_FLAGS, *ARM_FLAGS)
    flags = {flag: flag in (cpu.flags or ()) for flag in asked}
    return _assemble(
        cpu.name, cpu.physical_cores, flags, memory.get("MemTotal"), memory.get("MemAvailable")
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """What /proc/cpuinfo tells."""

    name: str | None
    physical_cores: int | None
    flags: frozenset[str] | None


def parse_cpuinfo(text: str) -> CpuInfo:
    """Read the text of /proc/cpuinfo: a block of `key : value` lines a logical core."""
    blocks = [_parse_block(block) for block in text.strip().split("\n\n") if block.strip()]
    if not blocks:
        return CpuInfo(None, None, None)
    first = blocks[0]
    cores = {(b["physical id"], b["core id"]) for b in blocks if "core id" in b}
    flags = first.get("flags") or first.get("Features")
    return CpuInfo(
        name=first.get("model name") or first.get("Hardware"),
        physical_cores=len(cores) or None,
        flags=None if flags is None else frozenset(flags.split()),
    )


def _parse_block(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {"physical id": "0"} | {key.strip(): value.strip() for key, _, value in pairs}


def parse_meminfo(text: str) -> dict[str, int]:
    """Read the text of /proc/meminfo: name -> bytes."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        parts = value.split()
        if parts and parts[0].isdigit():
            sizes[name] = int(parts[0]) * (1024 if parts[1:] == ["kB"] else 1)
    return sizes


def _describe_mac() -> Machine:
    names = [*_MAC_FLAGS.values(), "machdep.cpu.brand_string", "hw.physicalcpu", "hw.memsize"]
    told = {name: _ask_sysctl(name) for name in names}
    cores, memory = told["hw.physicalcpu"], told["hw.memsize"]
    return _assemble(
        told["machdep.cpu.brand_string"],
        int(cores) if cores else None,
        {flag: told[name] == "1" for flag, name in _MAC_FLAGS.items()},
        int(memory) if memory else None,
        None,
    )


def _ask_sysctl(name: str) -> str | None:
    command = ["/usr/sbin/sysctl", "-n", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        *((name, ctypes.c_ulonglong) for name in ("total", "available")),
        *((f"other_{i}", ctypes.c_ulonglong) for i in range(5)),
    )


def _describe_windows() -> Machine:
    if sys.platform != "win32":
        raise AssertionError("asked on Windows only")
    kernel = ctypes.windll.kernel32
    flags = {n: bool(kernel.IsProcessorFeaturePresent(i)) for n, i in _WINDOWS_FLAGS.items()}
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    known = bool(kernel.GlobalMemoryStatusEx(ctypes.byref(status)))
    return _assemble(
        platform.processor() or None,
        None,
        flags,
        int(status.total) if known else None,
        int(status.available) if known else None,
    )


def _measure_windows_memory() -> tuple[int | None, int | None]:
    # PROCESS_MEMORY_COUNTERS: two DWORDs, then PeakWorkingSetSize and WorkingSetSize.
    counters = (ctypes.c_size_t * 10)()
    library = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    library.GetCurrentProcess.restype = ctypes.c_void_p
    arguments = (ctypes.c_void_p(library.GetCurrentProcess()), counters, ctypes.sizeof(counters))
    if not library.K32GetProcessMemoryInfo(*arguments):
        return None, None
    return int(counters[2]), int(counters[1])
