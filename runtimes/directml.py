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
from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes.gpu_graph import Loader
from runtimes.gpu_memory import DeviceMemory, Memory
from runtimes.gpu_model import GpuRuntime, make_info
from runtimes.gpu_provider import load_graph, load_graph_on_cpu, make_gpu_options
from runtimes.gpu_shapes import ROUTED_FROM, FixedLengths
from runtimes.ort_plugins import ProviderDevice, find_device

PROVIDER = "DmlExecutionProvider"
_RUNTIME = "directml"
# Where Windows tells which adapter a device is; DirectML counts them alike.
_ADAPTER = "DxgiAdapterNumber"


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> GpuRuntime:
    """Load a bundle made for target `directml`.

    Args:
        bundle: the opened bundle.
        threads: threads of the CPU provider, where that was asked for.
        device: a GPU by index ("directml.1") or name ("nvidia"), None or "gpu" for the first;
            "cpu" for the same graphs on the CPU.

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime, or there is no such device.
        BundleError: the device does not take a graph, or leaves a node to the CPU.
    """
    if bundle.manifest.runtime != _RUNTIME:
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {bundle.manifest.runtime!r}, this is "
            f"{_RUNTIME!r}; export the model with --target directml"
        )
    if device == "cpu":
        on_cpu = partial(load_graph_on_cpu, threads=threads)
        return make_runtime(bundle, on_cpu, DeviceMemory("cpu"), "cpu")
    chosen = find_device(PROVIDER, None if device == "gpu" else device)
    return _load_on(bundle, chosen)


def _load_on(bundle: Bundle, device: ProviderDevice) -> GpuRuntime:
    adapter = find_adapter(device)
    # By the provider's name: only so is it known which adapter buffers lie on.
    named = device.without_handle()

    def load_one(path: Path, dims: Mapping[str, int]) -> ort.InferenceSession:
        return load_graph(path, named, make_gpu_options(dims), {"device_id": str(adapter)})

    return make_runtime(bundle, load_one, DeviceMemory("dml", adapter), device.describe())


def make_runtime(
    bundle: Bundle,
    load_one: Loader,
    memory: Memory,
    device: str,
    routed_from: int = ROUTED_FROM,
) -> GpuRuntime:
    """A runtime that appends as DirectML can.

    Args:
        bundle: the opened bundle.
        load_one: how a graph becomes a session.
        memory: of the device that sessions run on.
        device: for people.
        routed_from: the padded length from which a mixture's prompts run in parts.
    """
    info = make_info(_RUNTIME, device, appends_many=False)
    graphs = FixedLengths(bundle, load_one, memory, routed_from)
    return GpuRuntime(bundle, graphs, memory, info)


def find_adapter(device: ProviderDevice) -> int:
    """DirectML's number of a device."""
    if device.handle is None:
        return device.index
    return int(dict(device.handle.device.metadata).get(_ADAPTER, device.index))
