"""Calibration text through a model's lowered float graph -> the range of each activation.

The graph is that of a chunk as long as a row, over an empty history, so that one pass sees
every position. It costs one pass over the weights, each read once, and as many operations as
a prompt of all rows together. A target says how its graphs are lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.draft import Draft
from exporters.encoding import run_job
from exporters.quantize.evaluate import Evaluator, Rows
from exporters.quantize.plan import plan_tensors
from exporters.quantize.ranges import RangeBook, Ranges
from exporters.stitch import BlockTracer, stitch
from exporters.weight_book import WeightBook
from lfm2_deploy.config import NORM_EPS, Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.rotary import compute_rotary
from lfm2_deploy.states import list_states
from lfm2_deploy.static_graphs import (
    COS,
    EMBEDS,
    MASKED,
    PICKS,
    ROW_MASK,
    SIN,
    name_expert_input,
    name_expert_output,
    name_hidden,
    name_probabilities,
    name_residual,
    name_scores,
)
from lfm2_deploy.weights import EMBEDDING, list_weights

Array = NDArray[Any]
Passes = Sequence[Callable[[Draft], None]]
# The history that a graph must have: one row, masked.
_HISTORY = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a target calibrates with.

    Args:
        checkpoint: the weights.
        rows: token ids, each row from an empty state, all of one length.
        trace: traces a layer.
        progress: told of each layer of experts, and of the whole.
    """

    checkpoint: Checkpoint
    rows: Sequence[Sequence[int]]
    trace: BlockTracer
    progress: Progress

    @property
    def config(self) -> Lfm2Config:
        """The model's."""
        return self.checkpoint.config

    def draft(self, passes: Passes) -> Draft:
        """A float32 graph, lowered; its book says how weights are read."""
        config = self.config
        plan = plan_tensors(list_weights(config), "fp32")
        draft = Draft(config, stitch(config, self.trace), plan, WeightBook(), _HISTORY)
        for rewrite in passes:
            rewrite(draft)
        return draft


def measure_static(
    calibration: Calibration,
    lower_layers: Callable[[int], Passes],
    lower_router: Callable[[int], Passes],
    lower_experts: Callable[[int], Passes],
) -> Ranges:
    """Ranges of every value of static graphs; see `lfm2_deploy/static_graphs.py`.

    Args:
        calibration: the rows and the model.
        lower_layers: passes for the layers, given the tokens of a call.
        lower_router: passes for the router of a layer.
        lower_experts: passes for the experts of a layer, each a graph of its own.
    """
    book, rows = RangeBook(), calibration.rows
    calibration.progress("calibrating", 0, 0)
    mixture = _Mixture(calibration, book, lower_router, lower_experts)
    draft = calibration.draft(lower_layers(len(rows[0])))
    evaluator = Evaluator(draft.graph, _reader(draft, calibration), book.add, mixture.provide)
    evaluator.run(_make_feeds(calibration), len(rows))
    return book.ranges


def _reader(draft: Draft, calibration: Calibration) -> Callable[[str], Array]:
    """What gives an initializer's array, from the job that fills it."""
    jobs = {slot.initializer: job for job in draft.book.jobs for slot in job.slots}

    def read(name: str) -> Array:
        job = jobs[name]
        arrays = run_job(job, calibration.checkpoint).arrays
        (place,) = (n for n, slot in enumerate(job.slots) if slot.initializer == name)
        return arrays[place]

    return read


def _make_feeds(calibration: Calibration) -> dict[str, Rows]:
    config, rows = calibration.config, calibration.rows
    steps, count = len(rows[0]), len(rows)
    table = calibration.checkpoint.read(EMBEDDING)
    cos, sin = compute_rotary(config.rope_theta, config.head_dim, steps)
    width = config.conv_state_width
    shared = {
        COS: cos[None, :, None].astype(np.float32),
        SIN: sin[None, :, None].astype(np.float32),
        ROW_MASK: np.zeros((1, 1, 1, _HISTORY + steps), np.float32),
        PICKS: np.arange(steps, steps + width, dtype=np.int32),
    }
    shared[ROW_MASK][..., :_HISTORY] = MASKED
    for spec in list_states(config, channels_last=True):
        shared[spec.input] = np.zeros(spec.concrete_shape(1, _HISTORY), np.float32)
    feeds = {name: [array] * count for name, array in shared.items()}
    feeds[EMBEDS] = [table[list(row)][None] for row in rows]
    return feeds


class _Mixture:
    """Computes what experts give, as the host does, and notes what their values are."""

    def __init__(
        self,
        calibration: Calibration,
        book: RangeBook,
        lower_router: Callable[[int], Passes],
        lower_experts: Callable[[int], Passes],
    ) -> None:
        self._calibration, self._book = calibration, book
        self._lower_router, self._lower_experts = lower_router, lower_experts

    def provide(self, name: str, outputs: Mapping[str, Rows]) -> Rows:
        """Hidden states after the experts of the layer that `name` speaks of."""
        config = self._calibration.config
        layers = range(config.num_hidden_layers)
        layer = next(n for n in layers if name == name_hidden(n))
        self._calibration.progress("calibrating", layer, config.num_hidden_layers)
        residual = outputs[name_residual(layer)]
        x = outputs[name_expert_input(layer)]
        joined = np.concatenate(x, 1)
        y = self._run(layer, joined[0])[None]
        ends = np.cumsum([part.shape[1] for part in x])[:-1]
        return [a + b for a, b in zip(residual, np.split(y, ends, 1), strict=True)]

    def _run(self, layer: int, x: Array) -> Array:
        chosen, weights = self._route(layer, x)
        assert self._calibration.config.moe is not None
        numbers = range(self._calibration.config.moe.num_experts)
        places = [(chosen == expert).nonzero() for expert in numbers]
        feeds = {
            name_expert_input(layer, expert): [x[None, places[expert][0]]] for expert in numbers
        }
        outputs = self._evaluate(self._lower_experts(layer), feeds, self._book.add)
        y = np.zeros_like(x)
        for expert, (token, slot) in zip(numbers, places, strict=True):
            part = outputs[name_expert_output(layer, expert)][0][0]
            y[token] += part * weights[token, slot, None]
        return y

    def _route(self, layer: int, x: Array) -> tuple[Array, Array]:
        moe = self._calibration.config.moe
        assert moe is not None
        feeds = {name_expert_input(layer): [x[None]]}
        found = self._evaluate(self._lower_router(layer), feeds, lambda name, array: None)
        scores, probabilities = (
            found[name][0][0] for name in (name_scores(layer), name_probabilities(layer))
        )
        order = np.argsort(-scores, axis=-1, kind="stable")
        chosen = order[:, : moe.num_experts_per_tok]
        weights = np.take_along_axis(probabilities, chosen, axis=-1)
        if moe.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdims=True) + np.float32(NORM_EPS))
        return chosen, weights * np.float32(moe.routed_scaling_factor)

    def _evaluate(
        self, passes: Passes, feeds: dict[str, Rows], observe: Callable[[str, Array], None]
    ) -> dict[str, Rows]:
        draft = self._calibration.draft(passes)
        read = _reader(draft, self._calibration)
        return Evaluator(draft.graph, read, observe, _nothing).run(feeds, 1)


def _nothing(name: str, outputs: Mapping[str, Rows]) -> Rows:
    raise KeyError(name)
