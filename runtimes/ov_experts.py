"""The experts of a static mixture: routed here, or whole layers routed in their graph."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from lfm2_deploy.config import MoeConfig
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.static_graphs import (
    EXPERT_ROWS,
    name_expert_input,
    name_probabilities,
    name_scores,
)
from runtimes.ov_device import run
from runtimes.routing import IntArray, choose_experts

Array = NDArray[Any]
Compiled = Mapping[str, ov.CompiledModel]


class Mixture(Protocol):
    """All layers' experts."""

    def run(self, layer: int, x: Array) -> FloatArray:
        """Normed hidden states [n, H] of a layer -> the experts' weighted sum, float32 [n, H]."""


class WholeLayers:
    """A graph for each layer, which routes by itself."""

    def __init__(self, compiled: Compiled) -> None:
        self._requests = {name: c.create_infer_request() for name, c in compiled.items()}
        self._lock = threading.Lock()

    def run(self, layer: int, x: Array) -> FloatArray:
        """See `Mixture.run`."""
        request = self._requests[name_expert_input(layer)]
        with self._lock:
            request.set_input_tensor(ov.Tensor(np.ascontiguousarray(x[None])))
            run(request)
            y: FloatArray = request.get_output_tensor().data[0].astype(np.float32)
        return y


class HostRouted:
    """A graph for each expert, called with the tokens that chose it and no others.

    Tokens of a prompt are grouped by expert, so that its weights are read once for up to
    EXPERT_ROWS of them; a single token runs its K experts alone.
    """

    def __init__(self, moe: MoeConfig, routers: Compiled, experts: Compiled) -> None:
        self._moe = moe
        self._routers = {name: c.create_infer_request() for name, c in routers.items()}
        self._experts = {name: c.create_infer_request() for name, c in experts.items()}
        # One pair of buffers serves all experts: they run one after another.
        port = next(iter(experts.values())).input(0)
        shape, dtype = tuple(port.shape), port.element_type.to_dtype()
        self._x, self._y = np.zeros(shape, dtype), np.zeros(shape, dtype)
        for request in self._experts.values():
            request.set_input_tensor(ov.Tensor(self._x, shared_memory=True))
            request.set_output_tensor(ov.Tensor(self._y, shared_memory=True))
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
        request = self._routers[name_expert_input(layer)]
        request.set_input_tensor(ov.Tensor(np.ascontiguousarray(x[None])))
        run(request)
        scores = request.get_tensor(name_scores(layer)).data[0]
        probabilities = request.get_tensor(name_probabilities(layer)).data[0]
        return choose_experts(scores, probabilities, self._moe)

    def _call(self, layer: int, expert: int, x: Array) -> FloatArray:
        request = self._experts[name_expert_input(layer, expert)]
        y = np.empty(x.shape, np.float32)
        for start in range(0, len(x), EXPERT_ROWS):
            piece = x[start : start + EXPERT_ROWS]
            self._x[0, : len(piece)], self._x[0, len(piece) :] = piece, 0
            run(request)
            y[start : start + len(piece)] = self._y[0, : len(piece)]
        return y
