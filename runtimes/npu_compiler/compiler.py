"""Find Intel's NPU compiler, and read what it says."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.static_graphs import NPU_PLATFORMS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the compiler made of one graph.

    Args:
        platform: for which NPU.
        compiler: its version, such as "8.4".
        openvino: the version of the OpenVINO it came with.
        estimated_us: its cost model's microseconds for one call; None if it gave none. An
            estimate of the compiler's, never a measurement.
        blob_bytes: size of what it made.
        seconds: how long it took.
    """

    platform: str
    compiler: str
    openvino: str
    estimated_us: float | None
    blob_bytes: int
    seconds: float


class Compiler(Protocol):
    """Something that compiles."""

    def compile(self, graph: Path, platform: str, blob: Path) -> Verdict:
        """Compile a graph into a blob.

        Raises:
            BundleError: the compiler refuses the graph, with its reason.
        """


def find_compiler() -> Compiler:
    """The compiler of this machine.

    Raises:
        RuntimeUnavailableError: there is none; says how to get one.
    """
    from runtimes.npu_compiler.native import NativeCompiler
    from runtimes.npu_compiler.wine import WineCompiler

    kind = NativeCompiler if sys.platform == "win32" else WineCompiler
    missing = kind.missing()
    if missing:
        raise RuntimeUnavailableError(f"there is no NPU compiler here: {missing}")
    return kind()


def check_platform(platform: str) -> None:
    """Refuse a platform that no compiler knows.

    Raises:
        RuntimeUnavailableError: it is none of `NPU_PLATFORMS`.
    """
    if platform not in NPU_PLATFORMS:
        raise RuntimeUnavailableError(
            f"there is no NPU platform {platform!r}: expected 3720 (Meteor Lake, Arrow Lake), "
            "4000 (Lunar Lake) or 5010 (Panther Lake)"
        )


def read_log(
    log: str, graph: Path, platform: str, blob: Path, openvino: str, seconds: float
) -> Verdict:
    """What a compiler's log says.

    Raises:
        BundleError: it failed.
    """
    log = log.replace("\r", "")
    if not log.rstrip().endswith("OK") or not blob.is_file():
        raise BundleError(
            f"Intel's NPU compiler refuses {graph.name} for platform {platform}: {_reason(log)}"
        )
    version = re.search(r"^COMPILER (\d+)", log, re.M)
    number = int(version[1]) if version else 0
    # A graph may be compiled in several functions, one after another.
    estimates = [float(us) for us in re.findall(r"Estimated inference latency: ([\d.]+) us", log)]
    return Verdict(
        platform,
        f"{number >> 16}.{number & 0xFFFF}",
        openvino,
        sum(estimates) if estimates else None,
        blob.stat().st_size,
        seconds,
    )


def _reason(log: str) -> str:
    errors = re.findall(r"\[ERROR\][^\[\n]*(\[[^\n]*)", log)
    if errors:
        return str(errors[0]).strip()
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    failures = [line for line in lines if line.startswith("FAIL")]
    return (failures or lines or ["it ended without a word"])[-1]
