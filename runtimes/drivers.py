"""Which driver versions a device runs with, so that what was found of it can be dropped with them.

Windows keeps them in the registry: a key for each installed display or neural device, in its
device class. Linux' GPUs are asked through Vulkan; macOS' drivers come with the system. Where
nothing tells, the answer is "".
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

from lfm2_deploy.machine import describe_machine
from runtimes.vulkan import examine_vulkan

# learn.microsoft.com, "System-Defined Device Setup Classes": Display, ComputeAccelerator.
DISPLAY = "{4d36e968-e325-11ce-bfc1-08002be10318}"
COMPUTE = "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"
_CLASSES = r"SYSTEM\CurrentControlSet\Control\Class"


def describe_cpu() -> str:
    """The processor and what it computes with; kernels are chosen by it."""
    machine = describe_machine()
    name = machine.cpu or platform.machine()
    return f"{name} ({' '.join(machine.instructions)})" if machine.instructions else name


def describe_gpu_drivers() -> str:
    """Drivers of the GPUs here; of all, since WebGPU does not say which it took."""
    if sys.platform == "win32":
        return ", ".join(list_windows_drivers(DISPLAY))
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    adapters = examine_vulkan()["adapters"]
    return ", ".join(sorted(f"{a['name']}: {a['driver']}" for a in adapters))


def describe_npu_drivers() -> str:
    """Drivers of the NPUs here, where the system tells. Not checked on a device."""
    return ", ".join(list_windows_drivers(COMPUTE)) if sys.platform == "win32" else ""


def list_windows_drivers(device_class: str) -> list[str]:
    """Name and driver version of each device of a class, as Windows' registry has them.

    Not checked on Windows; its registry is a fake in tests.
    """
    try:
        registry: Any = importlib.import_module("winreg")
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, rf"{_CLASSES}\{device_class}") as key:
            return sorted(set(_read_devices(registry, key)))
    except (ImportError, OSError):
        return []


def _read_devices(registry: Any, key: Any) -> Iterator[str]:
    for number in range(registry.QueryInfoKey(key)[0]):
        try:
            # Not all can be read by everybody ("Properties").
            with registry.OpenKey(key, registry.EnumKey(key, number)) as device:
                name = registry.QueryValueEx(device, "DriverDesc")[0]
                yield f"{name} {registry.QueryValueEx(device, 'DriverVersion')[0]}"
        except OSError:
            continue
