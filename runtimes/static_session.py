"""A row on graphs of fixed shape: the host's part, the same for every backend.

The host owns all states, in buffers that both graphs are bound to. Of keys and values only
new rows come out, and are written into the buffers here; so are conv states. Token
embeddings and the head are graphs of their own, on the CPU; a mixture of experts is cut
into segments, with the experts in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray, NamedStates
from lfm2_deploy.rotary import compute_rotary
from lfm2_deploy.session_checks import check_embeddings
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import (
    COS,
    EMBEDS,
    ENDS,
    HIDDEN,
    HISTORY_MASK,
    INPUT_IDS,
    LOGITS,
    MASKED,
    PICKS,
    ROW_MASK,
    SIN,
    name_expert_input,
    name_residual,
)
from runtimes.row_session import RowSession, Saved
from runtimes.static_experts import Mixture
from runtimes.static_graph import AnyLength, Array, Bound, Graphs


@dataclass(frozen=True, slots=True)
class StaticGraphs:
    """The compiled graphs of a bundle.

    Args:
        embed, head: token ids to embeddings, hidden states to logits.
        prefill, decode: a chunk, a token: one graph, or the segments of a mixture in order.
        mixture: what comes between the segments.
    """

    embed: AnyLength
    head: AnyLength
    prefill: Graphs
    decode: Graphs
    mixture: Mixture | None


class StaticModel:
    """The compiled graphs of a bundle, and what all rows share."""

    max_proposal = 0

    def __init__(self, bundle: Bundle, graphs: StaticGraphs, arithmetic: str) -> None:
        manifest = bundle.manifest
        self.config, self.states = bundle.config, manifest.states
        self.chunk, self.context_length = manifest.chunk, manifest.context_length
        self.graphs = graphs
        self.dtype = np.dtype(manifest.states[0].dtype)
        self.rotary = _lay_out_rotary(bundle, self.dtype)
        self.arithmetic = arithmetic

    def open(self, capacity: int) -> StaticSession:
        """A fresh row."""
        return StaticSession(self, capacity)


def _lay_out_rotary(bundle: Bundle, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Cosines and sines [T, D/2] of every position."""
    config = bundle.config
    cos, sin = compute_rotary(config.rope_theta, config.head_dim, bundle.manifest.context_length)
    return cos.astype(dtype), sin.astype(dtype)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A graph bound to its buffers, and what the host does around it.

    Args:
        bound: buffers by name, and what runs it.
        start: the input that hidden states enter by.
        layer: whose experts come after it; None after the last.
        states: kind of each state that it writes, the state's buffer, and the new part.
    """

    bound: Bound
    start: str
    layer: int | None
    states: Sequence[tuple[str, Array, Array]]


class StaticSession(RowSession):
    """One row, whose states lie in buffers."""

    def __init__(self, model: StaticModel, capacity: int) -> None:
        super().__init__(model.config, capacity, model.chunk)
        self._model, self._specs = model, model.states
        length = model.context_length
        self._states = {
            s.input: np.zeros(s.concrete_shape(1, length), model.dtype) for s in model.states
        }
        # Of the history, and zeros for the new tokens after it.
        self._mask_row = np.zeros((1, 1, 1, length + model.chunk), model.dtype)
        self._mask = self._mask_row[..., :length]
        self._mask[:] = MASKED
        graphs = model.graphs
        self._embed, self._head = graphs.embed.open(), graphs.head.open()
        self._decode = self._bind(graphs.decode, 1)
        self._prefill = self._bind(graphs.prefill, model.chunk)

    def _bind(self, graphs: Graphs, steps: int) -> list[_Segment]:
        row = self._mask_row[..., : self._mask.shape[-1] + steps]
        shared = {**self._states, HISTORY_MASK: self._mask, ROW_MASK: row}
        return [
            _make_segment(graph.bind(shared), start, shared, self._specs)
            for start, graph in graphs.items()
        ]

    def prefill_embeddings(self, rows: Sequence[FloatArray]) -> FloatArray:
        """Append embeddings; see `contracts.EmbeddingSession.prefill_embeddings`."""
        self._check_whole()
        (row,) = check_embeddings(rows, self.lengths, self.capacity, self.config.hidden_size)
        return self._in_pieces(
            len(row),
            False,
            lambda start, stop, keep: self._append_hidden(row[None, start:stop], keep),
        )

    def _run(self, tokens: Sequence[int], keep: int) -> FloatArray:
        return self._append_hidden(self._look_up(tokens), keep)

    def _append_hidden(self, hidden: Array, keep: int) -> FloatArray:
        """As `_run`, of embeddings [1, n, H]."""
        count = hidden.shape[1]
        segments = self._prefill if count > 1 else self._decode
        for segment in segments:
            hidden = self._call(segment, hidden, count)
        for segment in segments:
            self._take_states(segment, count)
        self._mask[..., self._length : self._length + count] = 0
        return self._score(hidden[:, count - keep : count])

    def _look_up(self, tokens: Sequence[int]) -> Array:
        return self._embed({INPUT_IDS: np.array([tokens], np.int64)})[EMBEDS]

    def _call(self, segment: _Segment, hidden: Array, count: int) -> Array:
        """Hidden states [1, n, H] through one segment and the experts after it."""
        inputs, outputs, before = segment.bound.inputs, segment.bound.outputs, self._length
        inputs[segment.start][:, :count] = hidden[:, :count]
        inputs[segment.start][:, count:] = 0
        for name, table in zip((COS, SIN), self._model.rotary, strict=True):
            if name in inputs:
                inputs[name][0, :count, 0] = table[before : before + count]
        if ENDS in inputs:
            # Row i of it picks column count + i of (past, new).
            inputs[ENDS][:] = 0
            width = self.config.conv_state_width
            inputs[ENDS][0, range(width), range(count, count + width)] = 1
        if PICKS in inputs:
            inputs[PICKS][:] = range(count, count + self.config.conv_state_width)
        segment.bound.run()
        if segment.layer is None:
            return outputs[HIDDEN]
        mixture = self._model.graphs.mixture
        assert mixture is not None
        x = outputs[name_expert_input(segment.layer)][0, :count]
        residual = outputs[name_residual(segment.layer)][:, :count]
        return residual + mixture.run(segment.layer, x)

    def _take_states(self, segment: _Segment, count: int) -> None:
        before = self._length
        for kind, state, new in segment.states:
            if kind == "conv":
                state[:] = new
            else:
                state[:, :, before : before + count] = new[:, :, :count]

    def _score(self, hidden: Array) -> FloatArray:
        logits: FloatArray = self._head({HIDDEN: np.ascontiguousarray(hidden)})[LOGITS][0]
        return logits

    def _clear(self) -> None:
        for spec in self._specs:
            if spec.kind == "conv":
                self._states[spec.input][:] = 0
        self._show(0)

    def _show(self, length: int) -> None:
        """Let attention see so many rows of the history."""
        self._mask[..., :length] = 0
        self._mask[..., length:] = MASKED

    def _save_conv(self) -> Saved:
        return [self._states[s.input].copy() for s in self._specs if s.kind == "conv"]

    def _load(self, length: int, conv: Saved) -> None:
        # Rows of keys and values past a row's length are masked, so they may stay.
        saved = iter(conv)
        for spec in self._specs:
            if spec.kind == "conv":
                self._states[spec.input][:] = next(saved)
        self._show(length)

    def _save(self, length: int, conv: Saved) -> NamedStates:
        saved = iter(conv)
        arrays = {
            spec.input: (
                next(saved) if spec.kind == "conv" else self._states[spec.input][:, :, :length]
            ).copy()
            for spec in self._specs
        }
        return NamedStates((length,), arrays)

    def _restore(self, snapshot: NamedStates) -> None:
        (length,) = snapshot.lengths
        for spec in self._specs:
            state, array = self._states[spec.input], snapshot.arrays[spec.input]
            if spec.kind == "conv":
                state[:] = array
            else:
                state[:, :, :length] = array
        self._show(length)


def _make_segment(
    bound: Bound, start: str, shared: Mapping[str, Array], specs: Sequence[StateSpec]
) -> _Segment:
    outputs = bound.outputs
    layers = [re.fullmatch(r"moe\.(\d+)\.residual", name) for name in outputs]
    layer = next((int(found[1]) for found in layers if found), None)
    states = [(s.kind, shared[s.input], outputs[s.output]) for s in specs if s.output in outputs]
    return _Segment(bound, start, layer, states)
