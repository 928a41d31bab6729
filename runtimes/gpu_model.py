"""A bundle's graphs for a GPU, loaded by whichever provider; see `lfm2_deploy/gpu_graphs.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lfm2_deploy.bundle import WEIGHTS, Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.gpu_graphs import (
    BOUND_WEIGHTS,
    DECODE,
    MODEL,
    PREFILL,
    BoundWeight,
    parse_bound_weights,
)
from lfm2_deploy.session_checks import check_session
from lfm2_deploy.states import StateSpec
from runtimes.gpu_memory import Memory
from runtimes.gpu_session import GpuSession
from runtimes.separate_rows import SeparateRows

# A graph's file -> its session, every node of it on the device.
Loader = Callable[[Path], ort.InferenceSession]


class Graph:
    """One loaded graph, and the weights that are bound to it."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self.inputs = frozenset(value.name for value in session.get_inputs())
        raw = session.get_modelmeta().custom_metadata_map.get(BOUND_WEIGHTS, "{}")
        self.wanted: dict[str, BoundWeight] = parse_bound_weights(json.loads(raw))
        self.bound: dict[str, ort.OrtValue] = {}


class GpuRuntime:
    """`contracts.Runtime` on one graph, or on one for prompts and one for single tokens."""

    def __init__(
        self,
        bundle: Bundle,
        load: Loader,
        memory: Memory,
        info: RuntimeInfo,
        captures: bool = False,
    ) -> None:
        """Load a bundle.

        Args:
            bundle: the opened bundle.
            load: how a graph becomes a session.
            memory: of the device that those sessions run on.
            info: what this is and can do.
            captures: whether sessions were loaded to record and replay single tokens.

        Raises:
            BundleError: ONNX Runtime refuses a graph.
        """
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self.states: tuple[StateSpec, ...] = bundle.manifest.states
        self.memory, self.info = memory, info
        # With capture prepared for, a call must say whether it is one; see gpu_capture.
        self.can_capture = self.captures = captures
        self.capture_ids: Iterator[int] = itertools.count(1)
        graphs = {r.name: Graph(load(bundle.path / r.file)) for r in bundle.manifest.graphs}
        _bind_weights(graphs, bundle.path / WEIGHTS, memory)
        self._graphs: dict[str, Graph] | None = graphs

    def graph(self, count: int) -> Graph:
        """The graph for calls of so many tokens.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self._graphs is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        name = DECODE if count == 1 else PREFILL
        return self._graphs[name if name in self._graphs else MODEL]

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`.

        A graph takes one row at a time, so each row has states of its own.
        """
        self.graph(1)
        capacity = check_session(batch_size, capacity, self.context_length)
        rows = [GpuSession(self, capacity) for _ in range(batch_size)]
        return rows[0] if batch_size == 1 else SeparateRows(rows, self.config.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self._graphs = None


def make_info(runtime: str, device: str, *, appends_many: bool) -> RuntimeInfo:
    """What a runtime of such graphs can do."""
    able = Capabilities(appends_many=appends_many, rewinds=True, max_batch_size=0, scores_all=True)
    return RuntimeInfo(runtime, device, able)


def _bind_weights(graphs: dict[str, Graph], weights: Path, memory: Memory) -> None:
    """Put what the graphs bind on the device, each tensor once for all of them."""
    loaded: dict[str, ort.OrtValue] = {}
    for graph in graphs.values():
        for name, place in graph.wanted.items():
            if name not in loaded:
                mapped = np.memmap(weights, place.dtype, "r", place.offset, place.shape)
                loaded[name] = memory.upload(mapped)
            graph.bound[name] = loaded[name]
