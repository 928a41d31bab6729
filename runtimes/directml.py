"""DirectML through ONNX Runtime: onnxruntime-windowsml, or onnxruntime-directml before it.

**Not checked on a device.** Graphs are checked statically (`lfm2-deploy lint`) and executed on
the CPU provider; what DirectML does otherwise than the CPU is in tests as a fake session.

DirectML's GroupQueryAttention takes the past for empty when a call brings several tokens
(DmlOperatorGroupQueryAttention.cpp, onnxruntime 1.30: "past := 0"), and gives wrong logits
without a word. So several tokens are appended to an empty session only, in one call, and the
capabilities say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import onnxruntime as ort

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.gpu_graphs import STEPS
from runtimes.drivers import describe_cpu, describe_gpu_drivers
from runtimes.gpu_capture import check_capture
from runtimes.gpu_graph import Loader
from runtimes.gpu_memory import DeviceMemory, Memory
from runtimes.gpu_model import GpuRuntime, check_runtime, make_info
from runtimes.gpu_provider import load_graph, load_graph_on_cpu, make_gpu_options
from runtimes.gpu_shapes import ROUTED_FROM, FixedLengths
from runtimes.ort_plugins import ProviderDevice, find_device

PROVIDER = "DmlExecutionProvider"
_RUNTIME = "directml"
# Tokens of a prompt that take as long as one alone, by counting bytes and operations at 100 GB/s
# and 5 TFLOPS (benchmarks/experts.py): every weight is read for one token. Of a mixture it is 6 in
# a prompt of 64 and 20 in one of 512.
_TOKENS_PER_STEP = {"dense": 16, "moe": 10}
# Where Windows tells which adapter a device is; DirectML counts them alike.
_ADAPTER = "DxgiAdapterNumber"


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> GpuRuntime:
    """Load a bundle made for target `directml`.

    Args:
        bundle: the opened bundle.
        threads: threads of the CPU provider, where that was asked for.
        device: a GPU by index ("directml.1") or name ("nvidia"), None or "gpu" for the first
            that is no emulation;
            "cpu" for the same graphs on the CPU.

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime, or there is no such device.
        BundleError: the device does not take a graph, or leaves a node to the CPU.
    """
    check_runtime(bundle, _RUNTIME)
    if device == "cpu":
        on_cpu = partial(load_graph_on_cpu, threads=threads)
        return make_runtime(bundle, on_cpu, DeviceMemory("cpu"), "cpu")
    asked = None if device in ("gpu", "directml") else device
    chosen = find_device(PROVIDER, asked)
    if chosen.is_software and asked is None:
        raise RuntimeUnavailableError(
            f"DirectML finds no GPU here but {chosen.describe()}, which computes on the CPU: "
            f"install the GPU's driver, or ask for it by number (--device dml.{chosen.index})"
        )
    return _load_on(bundle, chosen)


def _load_on(bundle: Bundle, device: ProviderDevice) -> GpuRuntime:
    adapter = find_adapter(device)
    # By the provider's name: only so is it known which adapter buffers lie on.
    named = device.without_handle()
    memory, where = DeviceMemory("dml", adapter), device.describe()

    def load_one(path: Path, dims: Mapping[str, int], captures: bool) -> ort.InferenceSession:
        options = make_gpu_options(dims)
        if captures and dims[STEPS] == 1:
            options.add_session_config_entry("ep.dml.enable_graph_capture", "1")
        return load_graph(path, named, options, {"device_id": str(adapter)})

    try:
        load_captured = partial(load_one, captures=True)
        runtime = make_runtime(bundle, load_captured, memory, where, captures=True)
    except BundleError:
        # Whatever the reason, without recording there is one less.
        return make_runtime(bundle, partial(load_one, captures=False), memory, where)
    check_capture(runtime)
    return runtime


def make_runtime(
    bundle: Bundle,
    load_one: Loader,
    memory: Memory,
    device: str,
    captures: bool = False,
    routed_from: int = ROUTED_FROM,
) -> GpuRuntime:
    """A runtime that appends as DirectML can.

    Args:
        bundle: the opened bundle.
        load_one: how a graph becomes a session.
        memory: of the device that sessions run on.
        device: for people.
        captures: whether the graph of single tokens was loaded to be recorded.
        routed_from: the padded length from which a mixture's prompts run in parts.
    """
    per_step = _TOKENS_PER_STEP["dense" if bundle.config.moe is None else "moe"]
    driver = describe_cpu() if device == "cpu" else describe_gpu_drivers()
    info = make_info(_RUNTIME, bundle, device, driver, appends_many=False, per_step=per_step)
    graphs = FixedLengths(bundle, load_one, memory, routed_from)
    return GpuRuntime(bundle, graphs, memory, info, captures, total_on_host=True)


def find_adapter(device: ProviderDevice) -> int:
    """DirectML's number of a device."""
    if device.handle is None:
        return device.index
    return int(dict(device.handle.device.metadata).get(_ADAPTER, device.index))
