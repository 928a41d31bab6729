"""Rows that are decoded together and come and go, over one InferenceSession.

Rows lie at the beginning of shared buffers, so that the first n of them are one array that is
bound as it is; a row that leaves is replaced by the last. Keys and values are written in place,
conv states alternate between two sets of buffers, as in `ort_session`. Buffers hold as many
tokens as the longest row needs, and grow by doubling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray, NamedStates, Snapshot
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.session_checks import check_rows
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import EMBEDS, INPUT_IDS
from runtimes.ort_session import Model, reserve, wrap

# Tokens that buffers hold at first; more come when a row needs them.
_FIRST_CAPACITY = 512


class OrtRows:
    """`contracts.Rows` over bound buffers."""

    def __init__(self, runtime: Model, most: int, context_length: int) -> None:
        self._runtime, self._most, self._context_length = runtime, most, context_length
        self._kv_specs = [spec for spec in runtime.states if spec.kind != "conv"]
        self._conv_specs = [spec for spec in runtime.states if spec.kind == "conv"]
        self._lengths: list[int] = []
        self._turn = 0
        vocab = runtime.config.vocab_size
        self._logits = np.zeros((most, 1, vocab), np.float32)
        self._tokens = np.zeros((most, 1), np.int64)
        self._embedded = np.zeros((most, 1, runtime.config.hidden_size), np.float32)
        self._conv = [[reserve(s.concrete_shape(most, 1)) for s in self._conv_specs] for _ in "01"]
        self._allocate(min(_FIRST_CAPACITY, context_length))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now; see `contracts.Rows.lengths`."""
        return tuple(self._lengths)

    def join(self, states: Snapshot) -> int:
        """Add a row; see `contracts.Rows.join`."""
        place = len(self._lengths)
        if place == self._most:
            raise GenerationError(f"all {self._most} places are taken: let a row leave first")
        if not isinstance(states, NamedStates) or not self._fits(states):
            raise GenerationError("this snapshot is no row of this model: take one of its sessions")
        (length,) = states.lengths
        self._ensure_room(length + 1)
        for spec, buffer in self._buffers():
            _part(spec, buffer[place], length)[:] = states.arrays[spec.input][0]
        self._lengths.append(length)
        return place

    def leave(self, place: int) -> NamedStates:
        """Take a row out; see `contracts.Rows.leave`."""
        length, last = self._lengths[place], len(self._lengths) - 1
        taken = {
            spec.input: _part(spec, buffer[place], length)[None].copy()
            for spec, buffer in self._buffers()
        }
        for spec, buffer in self._buffers():
            if place != last:
                moved = self._lengths[last]
                _part(spec, buffer[place], moved)[:] = _part(spec, buffer[last], moved)
        self._lengths[place] = self._lengths[last]
        self._lengths.pop()
        self._shrink()
        return NamedStates((length,), taken)

    def decode(self, tokens: Sequence[int]) -> FloatArray:
        """Append one token to each row; see `contracts.Rows.decode`."""
        vocab = self._runtime.config.vocab_size
        check_rows([[token] for token in tokens], self._lengths, self._context_length, vocab)
        self._ensure_room(max(self._lengths) + 1)
        count = len(tokens)
        self._tokens[:count, 0] = tokens
        if self._runtime.embedder is not None:
            self._embedded[:count] = self._runtime.embedder.look_up(self._tokens[:count])
        totals = np.asarray(self._lengths, np.int64) + 1
        mask = (np.arange(int(totals.max())) < totals[:, None]).astype(np.int64)
        binding = self._bound(count)
        binding.bind_ortvalue_input("attention_mask", wrap(mask))
        self._runtime.session.run_with_iobinding(binding)
        self._turn = 1 - self._turn
        self._lengths = totals.tolist()
        return self._logits[:count, 0].copy()

    def _fits(self, states: NamedStates) -> bool:
        if len(states.lengths) != 1:
            return False
        shapes = {s.input: s.concrete_shape(1, states.lengths[0]) for s in self._runtime.states}
        return shapes == {name: array.shape for name, array in states.arrays.items()}

    def _buffers(self) -> Iterator[tuple[StateSpec, NDArray[Any]]]:
        """Every state with the buffer that holds it now."""
        yield from zip(self._kv_specs, self._kv, strict=True)
        yield from zip(self._conv_specs, self._conv[self._turn], strict=True)

    def _allocate(self, capacity: int) -> None:
        self._kv = [reserve(s.concrete_shape(self._most, capacity)) for s in self._kv_specs]
        # Only now: where there is no memory, rows go on in the buffers they have.
        self._capacity = capacity
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}

    def _ensure_room(self, tokens: int) -> None:
        if tokens > self._capacity:
            self._resize(max(tokens, 2 * self._capacity))

    def _shrink(self) -> None:
        """Give memory back when a long row has left."""
        needed = max(_FIRST_CAPACITY, 2 * max(self._lengths, default=0))
        if self._capacity >= 4 * needed or (self._capacity > needed and not self._lengths):
            self._resize(needed)

    def _resize(self, capacity: int) -> None:
        """Move the rows to buffers of another size."""
        before = self._kv
        self._allocate(min(capacity, self._context_length))
        for spec, old, new in zip(self._kv_specs, before, self._kv, strict=True):
            for place, length in enumerate(self._lengths):
                _part(spec, new[place], length)[:] = _part(spec, old[place], length)

    def _bound(self, count: int) -> ort.IOBinding:
        """Everything but the mask, bound for `count` rows that read conv buffers of this turn."""
        key = (self._turn, count)
        if key not in self._bindings:
            self._bindings[key] = self._bind(count)
        return self._bindings[key]

    def _bind(self, count: int) -> ort.IOBinding:
        binding = self._runtime.session.io_binding()
        binding.bind_ortvalue_output("logits", wrap(self._logits[:count]))
        for spec, buffer in zip(self._kv_specs, self._kv, strict=True):
            both = wrap(buffer[:count])
            binding.bind_ortvalue_input(spec.input, both)
            binding.bind_ortvalue_output(spec.output, both)
        before, after = self._conv[self._turn], self._conv[1 - self._turn]
        for spec, source, target in zip(self._conv_specs, before, after, strict=True):
            binding.bind_ortvalue_input(spec.input, wrap(source[:count]))
            binding.bind_ortvalue_output(spec.output, wrap(target[:count]))
        if self._runtime.embedder is None:
            binding.bind_ortvalue_input(INPUT_IDS, wrap(self._tokens[:count]))
        else:
            binding.bind_ortvalue_input(EMBEDS, wrap(self._embedded[:count]))
        binding.bind_ortvalue_input("logits_to_keep", wrap(np.ones(1, np.int64)))
        return binding


def _part(spec: StateSpec, row: NDArray[Any], length: int) -> NDArray[Any]:
    """What a row's buffer holds of its state: [N, length, D] of keys and values."""
    return row if spec.kind == "conv" else row[:, :length]
