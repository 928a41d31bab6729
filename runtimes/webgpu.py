"""WebGPU through ONNX Runtime: the plugin onnxruntime-ep-webgpu, or onnxruntime-webgpu.

The same bundle runs with both. With `device="cpu"` its graphs run on the CPU provider, to
compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnxruntime as ort

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from runtimes.drivers import describe_cpu, describe_gpu_drivers
from runtimes.gpu_capture import check_capture
from runtimes.gpu_memory import DeviceMemory, Memory, SessionMemory
from runtimes.gpu_model import GpuRuntime, check_runtime, make_info
from runtimes.gpu_prompts import check_prompts, send_singly
from runtimes.gpu_provider import load_graph, load_graph_on_cpu, make_gpu_options
from runtimes.gpu_settled import settle
from runtimes.gpu_shapes import AnyLength
from runtimes.ort_plugins import describe_library
from runtimes.vulkan import examine_vulkan
from runtimes.webgpu_device import PROVIDER, Chosen, choose_device

_RUNTIME = "webgpu"
# Commands of a whole token are recorded once and replayed; not in onnxruntime-webgpu 1.27.0,
# whose Python cannot write into a buffer on the device.
_CAPTURE = {"enableGraphCapture": "1"}


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> GpuRuntime:
    """Load a bundle made for target `webgpu`.

    Which calls come out right is tried at the first load on a device and driver, and remembered.

    Args:
        bundle: the opened bundle.
        threads: threads of the CPU provider, where that was asked for.
        device: see `webgpu_device.choose_device`; "cpu" for the same graphs on the CPU.

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime, or there is no such device.
        BundleError: the device does not take the graph, or leaves a node to the CPU.
    """
    check_runtime(bundle, _RUNTIME)
    if device == "cpu":
        info = make_info(_RUNTIME, bundle, "cpu", describe_cpu(), appends_many=True)
        on_cpu = partial(load_graph_on_cpu, threads=threads)
        return GpuRuntime(bundle, AnyLength(bundle, on_cpu), DeviceMemory("cpu"), info)
    return _load_on(bundle, choose_device(device))


def _load_on(bundle: Bundle, chosen: Chosen) -> GpuRuntime:
    is_plugin = chosen.device.handle is not None
    settings = {**chosen.settings, **(_CAPTURE if is_plugin else {})}

    def load_one(path: Path, dims: Mapping[str, int]) -> ort.InferenceSession:
        return load_graph(path, chosen.device, make_gpu_options(dims), settings)

    try:
        graphs = AnyLength(bundle, load_one)
    except BundleError as error:
        _explain_vulkan(error)
        raise
    memory: Memory = DeviceMemory("webgpu") if is_plugin else SessionMemory(PROVIDER, "webgpu")
    driver = ", ".join(filter(None, [describe_library(PROVIDER), describe_gpu_drivers()]))
    info = make_info(_RUNTIME, bundle, chosen.description, driver, appends_many=True)
    info = replace(info, notes=chosen.notes)
    runtime = GpuRuntime(bundle, graphs, memory, info, captures=is_plugin)
    key = {"bundle": bundle.identity, "device": chosen.description, "driver": info.driver}
    settle(runtime, key, partial(_check_calls, runtime, bundle))
    return runtime


def _check_calls(runtime: GpuRuntime, bundle: Bundle) -> None:
    """Find out which calls come out right here."""
    check_capture(runtime)
    if bundle.config.moe is not None and bundle.manifest.precision in ("int8", "int4"):
        send_singly(runtime)
    else:
        check_prompts(runtime)


def _explain_vulkan(error: BundleError) -> None:
    """Say what is wrong with Vulkan, where it has no adapter and so no graph can run.

    Raises:
        RuntimeUnavailableError: it has none.
    """
    vulkan = examine_vulkan()
    if vulkan["problems"] and not vulkan["adapters"]:
        problem = vulkan["problems"][0]
        raise RuntimeUnavailableError(
            f"WebGPU runs nothing here: {problem['what']}; {problem['remedy']}"
        ) from error
