"""Graphs of fixed shape on OpenVINO; `static_session.py` is the part of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openvino as ov

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.manifest import GraphRecord
from lfm2_deploy.static_graphs import DECODE, EMBED, EXPERTS, HEAD, PREFILL, ROUTERS
from runtimes.ov_device import (
    Device,
    common_settings,
    compile_graph,
    find_device,
    find_platform,
    import_blob,
    read_graph,
    run,
    version,
)
from runtimes.ov_split import split_graph
from runtimes.static_experts import HostRouted, Mixture, WholeLayers
from runtimes.static_graph import Array, Bound, Function, Port, check_graphs
from runtimes.static_session import StaticGraphs, StaticModel

# Compiled graphs of a file, by the input each begins with.
Compiled = Mapping[str, "OvGraph"]


def load_static(bundle: Bundle, device: Device, threads: int | None) -> StaticModel:
    """Compile a bundle for target `npu`.

    Raises:
        BundleError: a graph is missing, of another shape, or refused by the device's plugin.
    """
    compiled = {
        graph.name: _compile(bundle, graph, _place(graph, device), threads)
        for graph in bundle.manifest.graphs
    }
    empty: Compiled = {}
    prefill, decode = compiled.get(PREFILL, empty), compiled.get(DECODE, empty)
    check_graphs(bundle, set(compiled), prefill, decode)
    embed, head = (next(iter(compiled[name].values())) for name in (EMBED, HEAD))
    graphs = StaticGraphs(embed, head, prefill, decode, _make_mixture(bundle, compiled))
    # States and what lies between graphs are of the states' type; an NPU computes in float16.
    exact = device.kind == "CPU" and bundle.manifest.states[0].dtype == "float32"
    return StaticModel(bundle, graphs, "float32" if exact else "float16")


class OvGraph:
    """`StaticGraph` and `AnyLength` on a compiled model."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled

    @property
    def inputs(self) -> dict[str, Port]:
        """See `StaticGraph.inputs`."""
        return {name: _describe(port) for port in self._compiled.inputs for name in port.names}

    def bind(self, shared: Mapping[str, Array]) -> Bound:
        """See `StaticGraph.bind`."""
        request = self._compiled.create_infer_request()
        inputs: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        sides = ((self._compiled.inputs, inputs), (self._compiled.outputs, outputs))
        for port, arrays in ((port, arrays) for ports, arrays in sides for port in ports):
            # A port may carry the names of what it passes on, besides its own.
            found = [shared[name] for name in port.names if name in shared]
            array = found[0] if found else _describe(port).allocate()
            request.set_tensor(port, ov.Tensor(array, shared_memory=True))
            arrays |= dict.fromkeys(port.names, array)
        return Bound(lambda: run(request), inputs, outputs)

    def open(self) -> Function:
        """See `AnyLength.open`."""
        request = self._compiled.create_infer_request()
        outputs = [(port, port.names) for port in self._compiled.outputs]

        def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
            for name, array in feeds.items():
                request.set_tensor(name, ov.Tensor(array))
            run(request)
            results: dict[str, Array] = {}
            for port, names in outputs:
                results |= dict.fromkeys(names, request.get_tensor(port).data)
            return results

        return call


def _describe(port: Any) -> Port:
    return Port(tuple(port.shape), port.element_type.to_dtype().name)


def _place(graph: GraphRecord, device: Device) -> Device:
    """Where a graph runs: all of a bundle on the CPU where the bundle was asked to."""
    if graph.device == "target" or device.kind == "CPU":
        return device
    return find_device(graph.device)


def _compile(
    bundle: Bundle, graph: GraphRecord, device: Device, threads: int | None
) -> dict[str, OvGraph]:
    """A file's graphs by the input each begins with."""
    if device.kind == "NPU":
        ready = _import_blobs(bundle, graph.name, device)
        if ready:
            return ready
    path = bundle.path / graph.file
    settings = common_settings(device, threads)
    if device.kind == "CPU":
        # As the device it stands in for, which rounds no activations to 8 bits.
        settings |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = read_graph(path)
    graphs = {graph.name: model} if graph.name in (EMBED, HEAD) else split_graph(model)
    return {name: OvGraph(compile_graph(m, device, settings, path)) for name, m in graphs.items()}


def _import_blobs(bundle: Bundle, graph: str, device: Device) -> dict[str, OvGraph]:
    """What was compiled ahead of time for this NPU and this OpenVINO; nothing where it was not.

    Any other version of OpenVINO refuses a blob, and compiles the graph as if there were none.
    """
    here = (find_platform(device), version())
    return {
        blob.start: OvGraph(import_blob(bundle.path / blob.file, device))
        for blob in bundle.manifest.blobs
        if blob.graph == graph and (blob.platform, blob.openvino) == here
    }


def _make_mixture(bundle: Bundle, compiled: Mapping[str, Compiled]) -> Mixture | None:
    moe = bundle.config.moe
    if moe is None:
        return None
    experts: dict[str, OvGraph] = {}
    for name, graphs in compiled.items():
        if name.startswith(EXPERTS):
            experts |= graphs
    if ROUTERS in compiled:
        return HostRouted(moe, compiled[ROUTERS], experts)
    return WholeLayers(experts)
