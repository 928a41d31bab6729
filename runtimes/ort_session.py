"""One batch of rows on an ONNX Runtime session: explicit states in bound buffers.

Key/value buffers are bound as input and output at once, so no step copies them. Conv
states alternate between two sets of buffers, with bindings prepared for each direction:
one for prompts, and one for single tokens in which only the mask is bound anew.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Mark, NamedStates, RuntimeInfo, Snapshot
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.session_checks import (
    check_counts,
    check_embeddings,
    check_proposal,
    check_rows,
    check_some_tokens,
)
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import EMBEDS, INPUT_IDS
from runtimes.marks import Marks
from runtimes.ort_embedder import Embedder

# Prompts are appended in pieces of this many tokens, which bounds activations' memory.
PREFILL_CHUNK = 512
PADDING = -1

IntArray = NDArray[np.int64]


class Model(Protocol):
    """What a session needs of its runtime."""

    config: Lfm2Config
    states: tuple[StateSpec, ...]
    info: RuntimeInfo
    embedder: Embedder | None

    @property
    def session(self) -> ort.InferenceSession:
        """The loaded graph."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens appended on trial: lengths before, counts [B], and the windows of conv states."""

    before: IntArray
    new: IntArray
    windows: list[FloatArray]


class OrtSession:
    """`contracts.Session` over bound buffers.

    Where the decoder takes embeddings, tokens are looked up first, and the session has one row:
    nothing in such a call tells padding.
    """

    def __init__(self, runtime: Model, batch_size: int, capacity: int) -> None:
        self.batch_size, self.capacity = batch_size, capacity
        self._runtime = runtime
        self._lengths: IntArray = np.zeros(batch_size, np.int64)
        self._kv, self._conv = self._allocate()
        vocab = runtime.config.vocab_size
        # Bound buffers: what is written here is read by the next call, and the other way round.
        self._logits = np.zeros((batch_size, 1, vocab), np.float32)
        self._token = np.zeros((batch_size, 1), np.int64)
        self._embedded = np.zeros((batch_size, 1, runtime.config.hidden_size), np.float32)
        self._ones = np.ones((1, capacity), np.int64)
        self._turn = 0
        self._bindings = [self._bind(turn) for turn in (0, 1)]
        self._decoding = [self._bind_single(turn) for turn in (0, 1)]
        self._proposing: dict[tuple[int, int], tuple[ort.IOBinding, list[FloatArray]]] = {}
        self._marks = Marks()
        self._proposal: Proposal | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""
        return tuple(self._lengths.tolist())

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens to each row; see `contracts.Session.prefill`."""
        last = np.zeros((self.batch_size, self._runtime.config.vocab_size), np.float32)
        for start, ids, new in self._pieces(rows):
            logits = self._run(ids, new, keep=1)
            for row, tokens in enumerate(rows):
                if start < len(tokens) <= start + PREFILL_CHUNK:
                    last[row] = logits[row, 0]
        return last

    def prefill_embeddings(self, rows: Sequence[FloatArray]) -> FloatArray:
        """Append embeddings; see `contracts.EmbeddingSession.prefill_embeddings`."""
        self._check_settled()
        if self._runtime.embedder is None:
            raise GenerationError(
                "this bundle's decoder takes token ids: export the model with --inputs-embeds"
            )
        width = self._runtime.config.hidden_size
        (row,) = check_embeddings(rows, self.lengths, self.capacity, width)
        for start in range(0, len(row), PREFILL_CHUNK):
            piece = row[None, start : start + PREFILL_CHUNK]
            new = np.array([piece.shape[1]], np.int64)
            logits = self._run_inputs(EMBEDS, piece, new, keep=1)
        return logits[:, 0].copy()

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token to each row; see `contracts.Session.decode`."""
        self._check([[] if t is None else [t] for t in tokens])
        self._token[:, 0] = [PADDING if t is None else t for t in tokens]
        new = self._token[:, 0] != PADDING
        if self._runtime.embedder is not None:
            if not new.any():
                return np.zeros_like(self._logits[:, 0])
            self._embedded[:] = self._runtime.embedder.look_up(self._token)
        self._call(self._decoding[self._turn], self._lengths + new)
        return self._logits[:, 0].copy()

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, with logits after every token; see `contracts.Session.score`."""
        parts: list[list[FloatArray]] = [[] for _ in rows]
        for _, ids, new in self._pieces(rows):
            logits = self._run(ids, new, keep=ids.shape[1])
            for row, count in enumerate(new.tolist()):
                # Each row's last `count` positions; earlier ones repeat its first.
                parts[row].append(logits[row, logits.shape[1] - count :].copy())
        return [np.concatenate(part) for part in parts]

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Append what may be taken back; see `contracts.Session.propose`."""
        check_proposal(rows, self._runtime.info.capabilities.max_proposal)
        (((_, ids, new),)) = self._pieces(rows)
        before = self._lengths
        binding, windows = self._bind_windows(ids.shape[1])
        logits = self._run(ids, new, ids.shape[1], binding)
        self._proposal = Proposal(before, new, windows)
        # Each row's last positions; earlier ones repeat its first.
        width = logits.shape[1]
        return [logits[row, width - count :] for row, count in enumerate(new.tolist())]

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first of them; see `contracts.Session.accept`."""
        proposal = self._proposal
        if proposal is None:
            raise GenerationError("there is no proposal to accept; propose tokens first")
        check_counts(counts, proposal.new.tolist())
        width = self._runtime.config.conv_state_width
        # The call wrote states as if all had been kept; where that is so, they stay.
        for state, window in zip(self._conv[self._turn], proposal.windows, strict=True):
            for row, count in enumerate(counts):
                if count < proposal.new[row]:
                    state[row] = window[row, count : count + width].T
        self._lengths = proposal.before + np.asarray(counts, np.int64)
        self._proposal = None

    def reset(self) -> None:
        """Empty every row."""
        self._forget()
        self._lengths = np.zeros_like(self._lengths)
        # Key/value rows past a row's length are never read, so only conv states are cleared.
        for array in self._conv[self._turn]:
            array[:] = 0

    def mark(self) -> Mark:
        """Note this place; see `contracts.Session.mark`."""
        self._check_settled()
        conv = [array.copy() for array in self._conv[self._turn]]
        return self._marks.add(Mark(self.lengths, conv, sum(array.nbytes for array in conv)))

    def rewind(self, mark: Mark) -> None:
        """Go back to a place; see `contracts.Session.rewind`."""
        self._marks.check(mark)
        self._proposal = None
        for array, saved in zip(self._conv[self._turn], mark.states, strict=True):
            array[:] = saved
        self._lengths = np.array(mark.lengths, np.int64)
        self._marks.cut(mark.lengths)

    def snapshot(self, mark: Mark | None = None) -> NamedStates:
        """Copy the states; see `contracts.Session.snapshot`."""
        if mark is None:
            self._check_settled()
            lengths, conv = self.lengths, self._conv[self._turn]
        else:
            self._marks.check(mark)
            lengths, conv = mark.lengths, mark.states
        kv = (array[:, :, : max(lengths)] for array in self._kv)
        return NamedStates(lengths, {s.input: a.copy() for s, a in self._name(kv, conv)})

    def advance(self, snapshot: Snapshot) -> None:
        """Take over what this row became elsewhere; see `contracts.JoinableSession.advance`."""
        held = zip(self.lengths, snapshot.lengths, strict=False)
        if any(before > after for before, after in held):
            raise GenerationError("this snapshot is shorter than what the session holds")
        self._take_over(snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of this session, exactly."""
        self._take_over(snapshot)
        self._forget()

    def _take_over(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, NamedStates) or not self._fits(snapshot):
            raise GenerationError("this snapshot is of another session; restore it there")
        longest = max(snapshot.lengths)
        if longest > self.capacity:
            raise ContextOverflowError(
                f"the snapshot holds {longest} tokens, this session's capacity is {self.capacity}"
            )
        self._proposal = None
        for spec, array in self._name(self._kv, self._conv[self._turn]):
            if spec.kind == "conv":
                array[:] = snapshot.arrays[spec.input]
            else:
                array[:, :, :longest] = snapshot.arrays[spec.input]
        self._lengths = np.array(snapshot.lengths, np.int64)

    def _fits(self, snapshot: NamedStates) -> bool:
        """Whether a snapshot has this session's rows and this model's states."""
        states = self._runtime.states
        if len(snapshot.lengths) != self.batch_size:
            return False
        longest = max(snapshot.lengths)
        shapes = {s.input: s.concrete_shape(self.batch_size, longest) for s in states}
        return shapes == {name: array.shape for name, array in snapshot.arrays.items()}

    def _name(
        self, kv: Iterable[FloatArray], conv: Iterable[FloatArray]
    ) -> Iterator[tuple[StateSpec, FloatArray]]:
        """Every state with its buffer, in the order of the graph."""
        kv, conv = iter(kv), iter(conv)
        for spec in self._runtime.states:
            yield spec, next(conv if spec.kind == "conv" else kv)

    def _forget(self) -> None:
        self._marks.clear()
        self._proposal = None

    def _check_settled(self) -> None:
        if self._proposal is not None:
            raise GenerationError("the last proposal was not accepted; call accept first")

    def _allocate(self) -> tuple[list[FloatArray], tuple[list[FloatArray], list[FloatArray]]]:
        # GroupQueryAttention wants room for a row's padding too, though it never writes there
        # (onnxruntime 1.32.0). It is address space: pages never touched take no memory on Linux.
        padding = min(PREFILL_CHUNK, self.capacity) if self.batch_size > 1 else 0

        def zeros(spec: StateSpec) -> FloatArray:
            return reserve(spec.concrete_shape(self.batch_size, self.capacity + padding))

        states = self._runtime.states
        kv = [zeros(s) for s in states if s.kind != "conv"]
        conv = [[zeros(s) for s in states if s.kind == "conv"] for _ in range(2)]
        return kv, (conv[0], conv[1])

    def _bind(self, turn: int) -> ort.IOBinding:
        """Bind every state for calls that read conv buffers `turn` and write the others."""
        binding = self._runtime.session.io_binding()
        binding.bind_ortvalue_output("logits", wrap(self._logits))
        kv, before, after = iter(self._kv), iter(self._conv[turn]), iter(self._conv[1 - turn])
        for spec in self._runtime.states:
            if spec.kind == "conv":
                source, target = wrap(next(before)), wrap(next(after))
            else:
                source = target = wrap(next(kv))
            binding.bind_ortvalue_input(spec.input, source)
            binding.bind_ortvalue_output(spec.output, target)
        return binding

    def _bind_single(self, turn: int) -> ort.IOBinding:
        """As `_bind`, for calls of one token a row: all but the mask stays bound."""
        binding = self._bind(turn)
        if self._runtime.embedder is None:
            binding.bind_ortvalue_input(INPUT_IDS, wrap(self._token))
        else:
            binding.bind_ortvalue_input(EMBEDS, wrap(self._embedded))
        binding.bind_ortvalue_input("logits_to_keep", wrap(np.ones(1, np.int64)))
        return binding

    def _bind_windows(self, count: int) -> tuple[ort.IOBinding, list[FloatArray]]:
        """As `_bind`, for calls of `count` tokens that also give conv states' windows."""
        key = (self._turn, count)
        if key not in self._proposing:
            config, binding = self._runtime.config, self._bind(self._turn)
            shape = (self.batch_size, config.conv_state_width + count, config.hidden_size)
            specs = [spec for spec in self._runtime.states if spec.kind == "conv"]
            windows = [np.empty(shape, np.float32) for _ in specs]
            for spec, window in zip(specs, windows, strict=True):
                binding.bind_ortvalue_output(spec.window, wrap(window))
            self._proposing[key] = binding, windows
        return self._proposing[key]

    def _pieces(self, rows: Sequence[Sequence[int]]) -> Any:
        """Yield (start, padded ids [B, S], new lengths [B]) for each chunk of the rows."""
        self._check(rows)
        check_some_tokens(rows)
        counts = np.array([len(row) for row in rows], np.int64)
        for start in range(0, int(counts.max()), PREFILL_CHUNK):
            new = np.clip(counts - start, 0, PREFILL_CHUNK)
            ids = np.full((self.batch_size, int(new.max())), PADDING, np.int64)
            for row, count in enumerate(new.tolist()):
                ids[row, :count] = rows[row][start : start + count]
            yield start, ids, new

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        self._check_settled()
        vocab_size = self._runtime.config.vocab_size
        check_rows(rows, self.lengths, self.capacity, vocab_size)

    def _run(
        self, ids: IntArray, new: IntArray, keep: int, binding: ort.IOBinding | None = None
    ) -> FloatArray:
        """One call of the graph; returns logits [B, keep, V], valid until the next call."""
        embedder = self._runtime.embedder
        if embedder is None:
            return self._run_inputs(INPUT_IDS, ids, new, keep, binding)
        return self._run_inputs(EMBEDS, embedder.look_up(ids), new, keep, binding)

    def _run_inputs(
        self,
        name: str,
        array: NDArray[Any],
        new: IntArray,
        keep: int,
        binding: ort.IOBinding | None = None,
    ) -> FloatArray:
        """As `_run`, of ids [B, S] or embeddings [B, S, H]."""
        binding = binding or self._bindings[self._turn]
        binding.bind_cpu_input(name, array)
        # bind_cpu_input looks among required inputs only, and this one has a default.
        binding.bind_ortvalue_input("logits_to_keep", wrap(np.array([keep], np.int64)))
        if keep == 1:
            binding.bind_ortvalue_output("logits", wrap(self._logits))
        else:
            # The graph declares one position, so a buffer for more would be refused.
            binding.bind_output("logits")
        self._call(binding, self._lengths + new)
        if keep == 1:
            return self._logits
        # Bound first, so it is the first output.
        logits: FloatArray = binding.get_outputs()[0].numpy()
        return logits

    def _call(self, binding: ort.IOBinding, total: IntArray) -> None:
        """Run what is bound, after which the rows are `total` long."""
        binding.bind_ortvalue_input("attention_mask", wrap(self._mask(total)))
        self._runtime.session.run_with_iobinding(binding)
        self._turn = 1 - self._turn
        self._lengths = total

    def _mask(self, total: IntArray) -> IntArray:
        """int64 [B, T]: ones over each row's tokens."""
        # A row that is empty and stays so is shown as one token long: the kernel knows no
        # length of 0, and what it gives for that row is not used.
        shown = np.maximum(total, 1)
        if self.batch_size == 1:
            return self._ones[:, : shown[0]]
        return (np.arange(int(shown.max())) < shown[:, None]).astype(np.int64)


def reserve(shape: tuple[int, ...]) -> FloatArray:
    """Zeros that take memory page by page, as they are written.

    np.zeros asks for huge pages (numpy 1.22 and later, on Linux). Each head of each layer would
    then take 2 MiB for its first token, 201 MB in all for LFM2-350M, and the time to clear them.
    """
    size = prod(shape) * np.dtype(np.float32).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.float32, prod(shape)).reshape(shape)


def wrap(array: NDArray[Any]) -> ort.OrtValue:
    """An OrtValue over the array's own memory (the CPU device does not copy)."""
    return ort.OrtValue.ortvalue_from_numpy(array)
