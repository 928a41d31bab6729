"""The experts of a static mixture: routed here, or whole layers routed in their graph."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from lfm2_deploy.config import MoeConfig
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.static_graphs import (
    EXPERT_ROWS,
    name_expert_input,
    name_expert_output,
    name_probabilities,
    name_scores,
)
from runtimes.routing import IntArray, choose_experts
from runtimes.static_graph import AnyLength, Array, StaticGraph


class Mixture(Protocol):
    """All layers' experts."""

    def run(self, layer: int, x: Array) -> FloatArray:
        """Normed hidden states [n, H] of a layer -> the experts' weighted sum, float32 [n, H]."""


class WholeLayers:
    """A graph for each layer, which routes by itself."""

    def __init__(self, layers: Mapping[str, AnyLength]) -> None:
        self._layers = {name: graph.open() for name, graph in layers.items()}
        self._lock = threading.Lock()

    def run(self, layer: int, x: Array) -> FloatArray:
        """See `Mixture.run`."""
        name = name_expert_input(layer)
        with self._lock:
            outputs = self._layers[name]({name: np.ascontiguousarray(x[None])})
            y: FloatArray = outputs[name_expert_output(layer)][0].astype(np.float32)
        return y


class HostRouted:
    """A graph for each expert, called with the tokens that chose it and no others.

    Tokens of a prompt are grouped by expert, so that its weights are read once for up to
    EXPERT_ROWS of them; a single token runs its K experts alone.
    """

    def __init__(
        self, moe: MoeConfig, routers: Mapping[str, AnyLength], experts: Mapping[str, StaticGraph]
    ) -> None:
        self._moe = moe
        self._routers = {name: graph.open() for name, graph in routers.items()}
        # One pair of buffers serves all experts: they run one after another.
        name, graph = next(iter(experts.items()))
        self._x, self._y = graph.inputs[name].allocate(), graph.inputs[name].allocate()
        self._experts = {
            name: graph.bind({name: self._x, f"{name.removesuffix('x')}y": self._y}).run
            for name, graph in experts.items()
        }
        self._lock = threading.Lock()

    def run(self, layer: int, x: Array) -> FloatArray:
        """See `Mixture.run`."""
        with self._lock:
            chosen, weights = self._route(layer, x)
            y = np.zeros(x.shape, np.float32)
            for expert in np.unique(chosen):
                token, slot = (chosen == expert).nonzero()
                part = self._call(layer, int(expert), x[token])
                # A token chooses an expert once, so no row is here twice.
                y[token] += part * weights[token, slot, None]
        return y

    def _route(self, layer: int, x: Array) -> tuple[IntArray, FloatArray]:
        """Which K experts each token takes [n, K], and what each weighs, float32 [n, K]."""
        name = name_expert_input(layer)
        found = self._routers[name]({name: np.ascontiguousarray(x[None])})
        scores, probabilities = found[name_scores(layer)][0], found[name_probabilities(layer)][0]
        return choose_experts(scores, probabilities, self._moe)

    def _call(self, layer: int, expert: int, x: Array) -> FloatArray:
        run = self._experts[name_expert_input(layer, expert)]
        y = np.empty(x.shape, np.float32)
        for start in range(0, len(x), EXPERT_ROWS):
            piece = x[start : start + EXPERT_ROWS]
            self._x[0, : len(piece)], self._x[0, len(piece) :] = piece, 0
            run()
            y[start : start + len(piece)] = self._y[0, : len(piece)]
        return y
