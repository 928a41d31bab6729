"""Whether this machine can run a target's bundles: one function a target, called in a child.

Each really runs a graph on the device, and says so. A software adapter is found and passed over:
it is slower than the CPU's own kernels, and serves to test graphs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2_deploy.contracts import NOT_RUN, Probe
from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes import tiny_graph

if TYPE_CHECKING:  # a probe of OpenVINO's devices needs no onnxruntime
    from runtimes.ort_plugins import ProviderDevice

_RAN = "ran a graph there"
_SOFTWARE = "a software adapter, which is never chosen"


def probe_in_child(module: str, attribute: str) -> dict[str, Any]:
    """Call a probe, whoever brings it, and give its answer as JSON knows it.

    Raises:
        TypeError: it gives something else than a `Probe`.
    """
    function: Any = importlib.import_module(module)
    for name in filter(None, attribute.split(".")):
        function = getattr(function, name)
    found = function()
    if not isinstance(found, Probe):
        raise TypeError(f"{module}:{attribute} gives {type(found).__name__}, expected a Probe")
    return asdict(found)


def probe_cpu() -> Probe:
    """ONNX Runtime's CPU kernels."""
    return replace(_probe_provider("CPUExecutionProvider", _is_any), device="the CPU")


def probe_directml() -> Probe:
    """Any DirectX 12 GPU, on Windows. Not checked on Windows."""
    return _probe_provider("DmlExecutionProvider", _is_hardware)


def probe_webgpu() -> Probe:
    """Any GPU with Vulkan, Metal or DirectX 12."""
    from runtimes.vulkan import examine_vulkan

    vulkan = examine_vulkan()
    hardware = [found["name"] for found in vulkan["adapters"] if not found["is_software"]]
    software = [found["name"] for found in vulkan["adapters"] if found["is_software"]]
    # WebGPU takes what Vulkan has, and onnxruntime does not say what that was.
    if software and not hardware:
        return Probe(False, software[0], _SOFTWARE, NOT_RUN)
    if vulkan["problems"] and not hardware:
        return Probe(False, "", vulkan["problems"][0]["what"], NOT_RUN)
    found = _probe_provider("WebGpuExecutionProvider", _is_any if hardware else _is_hardware)
    return replace(found, device=hardware[0]) if found.available and hardware else found


def probe_qnn() -> Probe:
    """Qualcomm's NPU. Not checked on a device."""
    return _probe_provider("QNNExecutionProvider", _is_npu)


def _is_any(device: ProviderDevice) -> bool:
    return True


def _is_hardware(device: ProviderDevice) -> bool:
    return device.is_software is False


def _is_npu(device: ProviderDevice) -> bool:
    # As `qnn_device.find_device`: its bundles hold graphs for the NPU, which no GPU loads.
    return device.kind == "npu" and _is_hardware(device)


def _probe_provider(provider: str, fits: Callable[[ProviderDevice], bool]) -> Probe:
    from runtimes.device_check import find_half_lack, run_tiny_graph, shorten_reason
    from runtimes.ort_plugins import list_devices

    try:
        devices = list_devices(provider)
    except RuntimeUnavailableError as error:
        return Probe(False, "", str(error), NOT_RUN)
    if not devices:
        return Probe(False, "", f"{provider} finds no device here", NOT_RUN)
    fit = [device for device in devices if fits(device)]
    if not fit:
        first = devices[0]
        reason = _SOFTWARE if first.is_software else _explain_misfit(fits)
        return Probe(False, first.describe(), reason, NOT_RUN)
    try:
        checked = run_tiny_graph(fit[0])
    except Exception as error:
        reason = f"listed, but does not run: {shorten_reason(str(error))}"
        return Probe(False, fit[0].describe(), reason, "tried a graph")
    lack = find_half_lack(fit[0])
    if lack is not None:
        return Probe(False, fit[0].describe(), lack, checked)
    return Probe(True, fit[0].describe(), checked, checked)


def _explain_misfit(fits: Callable[[ProviderDevice], bool]) -> str:
    return "that is no NPU" if fits is _is_npu else "whether that is a GPU is not known"


def probe_igpu() -> Probe:
    """An Intel GPU, by OpenVINO's own plugin. Not checked on a GPU."""
    return probe_openvino("GPU")


def probe_npu() -> Probe:
    """An Intel NPU. Not checked on an NPU."""
    return probe_openvino("NPU")


def probe_openvino(kind: str) -> Probe:
    """The first of OpenVINO's devices of a kind: "NPU", "GPU" or "CPU"."""
    import openvino as ov

    from runtimes.ov_device import find_device, list_names, version

    names = list_names()
    if not any(name.partition(".")[0] == kind for name in names):
        found = ", ".join(names) or "none"
        return Probe(False, "", f"OpenVINO {version()} finds no {kind} (it finds {found})", NOT_RUN)
    device = find_device(kind)
    core = ov.Core()
    try:
        compiled = core.compile_model(core.read_model(tiny_graph.GRAPH), device.name)
        result = compiled({tiny_graph.INPUT: tiny_graph.make_input()})[tiny_graph.OUTPUT]
        places = list(compiled.get_property("EXECUTION_DEVICES"))
    except RuntimeError as error:
        reason = f"listed, but does not run: {str(error).strip().splitlines()[-1].strip()}"
        return Probe(False, device.describe(), reason, "tried a graph")
    fault = tiny_graph.find_fault(np.asarray(result))
    if any(place.partition(".")[0] != device.kind for place in places):
        fault = f"OpenVINO put the graph on {', '.join(places)}"
    if fault is not None:
        return Probe(False, device.describe(), fault, "ran a graph")
    return Probe(True, device.describe(), _RAN, _RAN)
