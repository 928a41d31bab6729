"""OpenVINO's devices: which there are, what to do where one is not, and compiling for one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from lfm2_deploy.device_names import explain_device
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.machine import find_cache
from runtimes.drivers import describe_cpu, describe_npu_drivers

# What brings a device that OpenVINO does not find.
REMEDIES = {
    "NPU": "it needs an Intel Core Ultra processor and its NPU driver (Windows: Intel NPU Driver "
    "from intel.com; Linux: github.com/intel/linux-npu-driver, and your user in group render)",
    "GPU": "it needs an Intel GPU and its driver (Windows: Intel Graphics driver; Linux: package "
    "intel-opencl-icd, and your user in group render)",
    "CPU": "install OpenVINO again: pip install --force-reinstall openvino",
}


_VERSIONS = ("DRIVER_VERSION", "COMPILER_VERSION")
# As targets are called.
_ALIASES = {"IGPU": "GPU", "OPENVINO-CPU": "CPU"}


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is there.

    Args:
        name: OpenVINO's, such as "NPU" or "GPU.0".
        full_name: the vendor's.
    """

    name: str
    full_name: str

    @property
    def kind(self) -> str:
        """ "NPU", "GPU" or "CPU"."""
        return self.name.partition(".")[0]

    def describe(self) -> str:
        """For people: what runs, and where."""
        return f"{self.name} ({self.full_name})"


def find_device(asked: str) -> Device:
    """The device of that name.

    Args:
        asked: "npu", "gpu", "cpu", or with a number, "gpu.1".

    Raises:
        RuntimeUnavailableError: there is no such device here; says what it needs.
    """
    name = _ALIASES.get(asked.upper(), asked.upper())
    kind = name.partition(".")[0]
    if kind not in REMEDIES:
        raise RuntimeUnavailableError(
            explain_device(asked, "a bundle for OpenVINO", ("npu", "gpu", "cpu", "gpu.1"))
        )
    found = list_names()
    # One device of a kind has no number, several have; "GPU" means the first.
    if name not in found and f"{name}.0" not in found:
        raise RuntimeUnavailableError(
            f"OpenVINO {version()} finds no {name} here (it finds {', '.join(found) or 'none'}): "
            f"{_explain(name, kind, found)}; `lfm2-deploy doctor` shows what is there"
        )
    return _describe(name)


def _explain(name: str, kind: str, found: list[str]) -> str:
    if any(other.partition(".")[0] == kind for other in found):
        return "say it without the number, or with one of those"
    return f"{REMEDIES[kind]}; to try the graphs on the CPU, add --device cpu"


def list_names() -> list[str]:
    """OpenVINO's names of the devices here."""
    return list(ov.Core().available_devices)


def _describe(name: str) -> Device:
    return Device(name, str(ov.Core().get_property(name, "FULL_DEVICE_NAME")).strip())


def list_devices() -> list[Device]:
    """Every device that OpenVINO finds."""
    return [_describe(name) for name in list_names()]


def compile_graph(
    model: ov.Model, device: Device, settings: dict[str, Any], path: Path
) -> ov.CompiledModel:
    """Compile for a device and no other.

    Args:
        model: read from `path`.
        device: where it must run.
        settings: the plugin's properties.
        path: named in errors.

    Raises:
        BundleError: the plugin refuses the graph.
        RuntimeUnavailableError: it would run elsewhere.
    """
    core = ov.Core()
    try:
        compiled = core.compile_model(model, device.name, settings)
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO {version()} cannot compile {path} for {device.describe()}: "
            f"{_reason(error)}; update the device's driver, or export the model again"
        ) from error
    ran_on = list(compiled.get_property("EXECUTION_DEVICES"))
    if any(where.partition(".")[0] != device.kind for where in ran_on):
        raise RuntimeUnavailableError(
            f"{path} was to run on {device.name} and OpenVINO put it on {', '.join(ran_on)}"
        )
    return compiled


def import_blob(path: Path, device: Device) -> ov.CompiledModel:
    """Load a graph that was compiled ahead of time. Not checked: it needs the device.

    Raises:
        BundleError: the driver refuses it.
    """
    try:
        return ov.Core().import_model(path.read_bytes(), device.name)
    except RuntimeError as error:
        raise BundleError(
            f"{device.describe()} refuses {path}, which was compiled ahead of time "
            f"({_reason(error)}): update the NPU driver, or export without --compile"
        ) from error


def describe_driver(device: Device) -> str:
    """Versions of all that computes on a device: OpenVINO's, and the driver's and its compiler's
    where the plugin tells (NPU_DRIVER_VERSION, NPU_COMPILER_VERSION, GPU_DRIVER_VERSION)."""
    found = [f"OpenVINO {ov.__version__}"]
    if device.kind == "CPU":
        return ", ".join([*found, describe_cpu()])
    core = ov.Core()
    with contextlib.suppress(RuntimeError):
        for name in sorted(map(str, core.get_property(device.name, "SUPPORTED_PROPERTIES"))):
            if name.endswith(_VERSIONS):
                with contextlib.suppress(RuntimeError):
                    found.append(f"{name} {core.get_property(device.name, name)}")
    drivers = describe_npu_drivers() if device.kind == "NPU" else ""
    return ", ".join([*found, *([drivers] if drivers else [])])


def find_platform(device: Device) -> str:
    """An NPU's platform, such as "4000"."""
    return str(ov.Core().get_property(device.name, "DEVICE_ARCHITECTURE"))


def read_graph(path: Path) -> ov.Model:
    """Read a graph; weights are mapped, not copied.

    Raises:
        BundleError: OpenVINO cannot read it.
    """
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise BundleError(
            f"OpenVINO {version()} cannot read {path}: {_reason(error)}; export the model again"
        ) from error


def run(request: Any) -> None:
    """Run what is bound, once. `infer` would also copy every output into a dictionary."""
    request.start_async()
    try:
        request.wait()
    except BaseException:
        # An interruption leaves the request at work; the next call must find it idle.
        request.cancel()
        with contextlib.suppress(RuntimeError):
            request.wait()
        raise


def common_settings(device: Device, threads: int | None) -> dict[str, Any]:
    """Properties that every graph is compiled with."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device.kind == "CPU":
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
    else:
        # Not for a CPU: it compiles LFM2-350M in 0.9 s, and would from a cache take 0.24 s and
        # 221 MB of disk, the weights once more (OpenVINO 2026.4.1, OPTIMIZE_SIZE as large).
        cache = find_cache() / "openvino"
        cache.mkdir(parents=True, exist_ok=True)
        settings["CACHE_DIR"] = str(cache)
    return settings


def version() -> str:
    """OpenVINO's, such as "2026.4.1"."""
    return str(ov.__version__).partition("-")[0]


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
