"""Which GPU WebGPU is to run on, and which it is known to run on.

ONNX Runtime's WebGPU provider asks Dawn for an adapter by power preference alone; which device
of several it was handed does not matter (webgpu_context.cc, onnxruntime 1.30). So a GPU can be
named where there is one; of several, a preference can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes.ort_plugins import ProviderDevice, find_device, list_devices
from runtimes.vulkan import examine_vulkan

PROVIDER = "WebGpuExecutionProvider"
PREFERENCES = ("high-performance", "low-power")
_ANY = (None, "", "gpu", "webgpu")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A device to run on.

    Args:
        device: as onnxruntime lists it.
        settings: the provider's own, besides.
        description: where it runs, for people, as far as that is known.
        notes: what a user should know of it.
    """

    device: ProviderDevice
    settings: Mapping[str, str]
    description: str
    notes: tuple[str, ...] = ()


def choose_device(asked: str | None) -> Chosen:
    """The device that a user means.

    Args:
        asked: None, "gpu" or "webgpu" for what WebGPU takes by itself; "high-performance" or
            "low-power" of several GPUs; an index or a name of the only one.

    Raises:
        RuntimeUnavailableError: there is no such device, or it cannot be chosen among several.
    """
    preferred = asked if asked in PREFERENCES else None
    device = find_device(PROVIDER, None if preferred or asked in _ANY else asked)
    gpus = [one for one in list_devices(PROVIDER) if one.is_software is False]
    settings = {"powerPreference": preferred} if preferred else {}
    if len(gpus) > 1 and not device.is_software:
        names = " and ".join(one.describe() for one in gpus)
        if asked not in (*_ANY, *PREFERENCES):
            raise RuntimeUnavailableError(
                f"WebGPU chooses among {names} by itself, so {asked!r} cannot be promised: ask "
                f"for --device {' or '.join(PREFERENCES)}, or leave --device out"
            )
        return Chosen(device, settings, f"webgpu (one of {names})")
    description = _find_emulation(device) or device.describe()
    notes = (f"{description} computes on the CPU: to check, not for speed",)
    is_software = bool(device.is_software) or description != device.describe()
    return Chosen(device, settings, description, notes if is_software else ())


def _find_emulation(device: ProviderDevice) -> str | None:
    """The software adapter that stands in where Vulkan has no other, whatever is listed."""
    if device.is_software:
        return None
    adapters = examine_vulkan()["adapters"]
    if not adapters or not all(adapter["is_software"] for adapter in adapters):
        return None
    return f"webgpu (software, {adapters[0]['name']})"
