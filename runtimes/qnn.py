"""A bundle's graphs of fixed shape on Qualcomm's HTP, its small ones on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.errors import BundleError, GenerationError, RuntimeUnavailableError
from lfm2_deploy.manifest import GraphRecord
from lfm2_deploy.session_checks import check_session
from lfm2_deploy.static_graphs import DECODE, EMBED, EXPERTS, HEAD, PREFILL, ROUTERS
from runtimes.qnn_contexts import find_contexts
from runtimes.qnn_device import (
    EMULATOR,
    NPU,
    QnnDevice,
    create_host_session,
    create_session,
    describe_driver,
    find_device,
)
from runtimes.qnn_graph import OrtGraph
from runtimes.separate_rows import SeparateRows
from runtimes.static_experts import HostRouted, Mixture
from runtimes.static_graph import begins, check_graphs, damaged
from runtimes.static_session import StaticGraphs, StaticModel


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> QnnRuntime:
    """Load a bundle made for target `qnn`.

    Args:
        bundle: the opened bundle.
        threads: threads of what runs on the CPU.
        device: "npu", or "emulator" (Linux x86_64), or "cpu" to try the graphs with
            onnxruntime's own kernels; None for "npu".

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime, or there is no such device.
        BundleError: the device refuses a graph.
    """
    manifest = bundle.manifest
    if manifest.runtime != "qnn":
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {manifest.runtime!r}, this is 'qnn'; "
            "export the model with --target qnn"
        )
    return QnnRuntime(bundle, find_device(device or NPU), threads)


class QnnRuntime:
    """`contracts.Runtime` on sessions of onnxruntime-qnn."""

    def __init__(self, bundle: Bundle, device: QnnDevice, threads: int | None) -> None:
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self._model: StaticModel | None = _load_model(bundle, device, threads)
        capabilities = Capabilities(True, True, 0, True, 0, bundle.manifest.chunk)
        remark = f"runs on {device.describe()}: to check, not for speed"
        notes = (remark,) if device.kind == EMULATOR else ()
        self.info = RuntimeInfo(
            "qnn",
            device.describe(),
            capabilities,
            notes,
            describe_driver(device),
            self._model.arithmetic,
        )

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`.

        A graph takes one row at a time, so each row has states of its own.
        """
        if self._model is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        capacity = check_session(batch_size, capacity, self.context_length)
        rows = [self._model.open(capacity) for _ in range(batch_size)]
        return rows[0] if batch_size == 1 else SeparateRows(rows, self.config.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self._model = None


def _load_model(bundle: Bundle, device: QnnDevice, threads: int | None) -> StaticModel:
    contexts = find_contexts(bundle, device)
    loaded = {
        graph.name: _load_graph(bundle, graph, contexts, device, threads)
        for graph in bundle.manifest.graphs
    }
    prefill, decode = (_gather(bundle, loaded, name) for name in (PREFILL, DECODE))
    # A layer's experts are there if one is; each is asked for by name below.
    names = {name.rpartition(".")[0] if _is_numbered(name) else name for name in loaded}
    check_graphs(bundle, names, prefill, decode)
    mixture = _make_mixture(bundle, loaded)
    graphs = StaticGraphs(loaded[EMBED], loaded[HEAD], prefill, decode, mixture)
    arithmetic = "int16" if bundle.manifest.precision in ("int8", "int4") else "float16"
    return StaticModel(bundle, graphs, arithmetic)


def _is_numbered(name: str) -> bool:
    """Whether a graph is one of several: "prefill.0", "experts.2.5"."""
    return name.startswith((f"{PREFILL}.", f"{DECODE}.", f"{EXPERTS}."))


def _load_graph(
    bundle: Bundle,
    graph: GraphRecord,
    contexts: Mapping[str, str],
    device: QnnDevice,
    threads: int | None,
) -> OrtGraph:
    if graph.device == "cpu":
        return OrtGraph(create_host_session(bundle.path / graph.file, threads))
    file = contexts.get(graph.name, graph.file)
    return OrtGraph(create_session(bundle.path / file, device, threads))


def _gather(bundle: Bundle, loaded: Mapping[str, OrtGraph], name: str) -> dict[str, OrtGraph]:
    """A graph, or the segments it was cut into, by the input each begins with, in order.

    Raises:
        BundleError: one begins with no such input.
    """
    numbers = (f"{name}.{number}" for number in range(bundle.config.num_hidden_layers + 1))
    graphs = [loaded[n] for n in (name, *numbers) if n in loaded]
    found = {}
    for graph in graphs:
        starts = [port for port in graph.inputs if begins(port)]
        if len(starts) != 1:
            raise damaged(bundle, f"graph {name} begins with {', '.join(starts) or 'nothing'}")
        found[starts[0]] = graph
    return found


def _make_mixture(bundle: Bundle, loaded: Mapping[str, OrtGraph]) -> Mixture | None:
    moe, config = bundle.config.moe, bundle.config
    layers = [n for n in range(config.num_hidden_layers) if config.is_moe_layer(n)]
    if moe is None or not layers:
        return None
    routers = _pick(bundle, loaded, [f"{ROUTERS}.{layer}" for layer in layers])
    experts = _pick(
        bundle, loaded, [f"{EXPERTS}.{n}.{e}" for n in layers for e in range(moe.num_experts)]
    )
    return HostRouted(moe, routers, experts)


def _pick(bundle: Bundle, loaded: Mapping[str, OrtGraph], names: list[str]) -> dict[str, OrtGraph]:
    """Graphs of one input each, by that input."""
    missing = [name for name in names if name not in loaded]
    if missing:
        raise damaged(bundle, f"graph {missing[0]} is missing")
    found: dict[str, OrtGraph] = {}
    for name in names:
        inputs = list(loaded[name].inputs)
        if len(inputs) != 1:
            raise BundleError(f"{bundle.path} is damaged: graph {name} takes {', '.join(inputs)}")
        found[inputs[0]] = loaded[name]
    return found
