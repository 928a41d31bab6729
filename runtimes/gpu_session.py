"""One row on a GPU: states stay on the device, the host sends tokens and gets logits.

Keys and values lie in one buffer that each call reads and writes in place. It grows as the row
does, so that a short conversation in a long context takes little memory. Conv states alternate
between two sets of buffers, with bindings prepared for each direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Mark, NamedStates, RuntimeInfo, Snapshot
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.gpu_graphs import LOGITS
from lfm2_deploy.session_checks import check_rows, check_some_tokens
from lfm2_deploy.states import StateSpec
from runtimes.gpu_capture import CapturedToken, uncaptured
from runtimes.gpu_inputs import list_inputs, pad_logits
from runtimes.gpu_memory import Array, Memory
from runtimes.gpu_routed import RoutedPrompt
from runtimes.marks import Marks

if TYPE_CHECKING:
    from runtimes.gpu_graph import Graph

# Prompts are appended in pieces of this many tokens, which bounds activations' memory.
PREFILL_CHUNK = 512


class Model(Protocol):
    """What a session needs of its runtime."""

    config: Lfm2Config
    states: tuple[StateSpec, ...]
    info: RuntimeInfo
    memory: Memory
    can_capture: bool
    captures: bool
    total_on_host: bool
    capture_ids: Iterator[int]
    prompt_chunk: int | None

    def graph(self, count: int, logit_count: int) -> Graph | RoutedPrompt:
        """The graph, or its parts, for a call of so many tokens and logits."""

    def choose_room(self, needed: int, capacity: int) -> int:
        """How many tokens a session's buffers should hold, to hold `needed` of them now."""


class GpuSession:
    """`contracts.Session` of one row."""

    batch_size = 1

    def __init__(self, runtime: Model, capacity: int) -> None:
        self.capacity = capacity
        self._runtime = runtime
        self._length = self._turn = 0
        # A graph may be given up for another length; its bindings go with it.
        self._bindings: WeakKeyDictionary[Graph, dict[int, ort.IOBinding]] = WeakKeyDictionary()
        self._captured: CapturedToken | None = None
        self._marks = Marks()
        self._conv = [s for s in runtime.states if s.kind == "conv"]
        self._kv = [s for s in runtime.states if s.kind != "conv"]
        self._room = runtime.choose_room(0, capacity)
        self._place(self._zeros(self._kv), self._zeros(self._conv))

    @property
    def lengths(self) -> tuple[int]:
        """Tokens the row holds now."""
        return (self._length,)

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens; see `contracts.Session.prefill`."""
        (ids,) = self._check(rows)
        logits = [self._run(piece, [len(piece) - 1]) for piece in self._cut(ids)]
        return logits[-1]

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token; see `contracts.Session.decode`."""
        (ids,) = self._check([[] if token is None else [token] for token in tokens])
        return self._run(ids, [0])

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, with logits after every token; see `contracts.Session.score`."""
        (ids,) = self._check(rows)
        return [np.concatenate([self._run(p, range(len(p))) for p in self._cut(ids)])]

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Not possible: conv states cannot be cut here (`Capabilities.max_proposal` is 0).

        Raises:
            GenerationError: always.
        """
        raise GenerationError(f"runtime {self._runtime.info.runtime} cannot take tokens back")

    def accept(self, counts: Sequence[int]) -> None:
        """There is never a proposal.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("there is no proposal to accept")

    def reset(self) -> None:
        """Empty the row."""
        self._marks.clear()
        self._length = 0
        # Rows of keys and values past a row's length are never read.
        self._place(self._buffers, self._zeros(self._conv))

    def mark(self) -> Mark:
        """Note this place; see `contracts.Session.mark`."""
        conv = self._read(self._columns[self._turn])
        return self._marks.add(Mark(self.lengths, conv, sum(array.nbytes for array in conv)))

    def rewind(self, mark: Mark) -> None:
        """Go back to a place; see `contracts.Session.rewind`."""
        self._marks.check(mark)
        self._length = mark.lengths[0]
        self._place(self._buffers, self._upload(mark.states))
        self._marks.cut(mark.lengths)

    def snapshot(self, mark: Mark | None = None) -> NamedStates:
        """Copy the states; see `contracts.Session.snapshot`."""
        if mark is not None:
            self._marks.check(mark)
        length = self._length if mark is None else mark.lengths[0]
        conv = self._read(self._columns[self._turn]) if mark is None else mark.states
        kv = [array[:, :, :length].copy() for array in self._read(self._buffers)]
        arrays = zip([*self._kv, *self._conv], [*kv, *conv], strict=True)
        return NamedStates((length,), {spec.input: array for spec, array in arrays})

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of a session of the same bundle, exactly."""
        if not isinstance(snapshot, NamedStates) or not self._fits(snapshot):
            raise GenerationError("this snapshot is of another session; restore it there")
        (length,) = snapshot.lengths
        if length > self.capacity:
            raise ContextOverflowError(
                f"the snapshot holds {length} tokens, this session's capacity is {self.capacity}"
            )
        room = self._runtime.choose_room(length, self.capacity)
        kv = self._upload([_pad(snapshot.arrays[spec.input], room) for spec in self._kv])
        conv = self._upload([snapshot.arrays[spec.input] for spec in self._conv])
        self._marks.clear()
        self._room, self._length = room, length
        self._place(kv, conv)

    def _fits(self, snapshot: NamedStates) -> bool:
        if len(snapshot.lengths) != 1:
            return False
        (length,) = snapshot.lengths
        states = self._runtime.states
        wanted = {s.input: (s.concrete_shape(1, length), s.dtype) for s in states}
        arrays = snapshot.arrays.items()
        return wanted == {name: (array.shape, array.dtype.name) for name, array in arrays}

    def _check(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        check_rows(rows, self.lengths, self.capacity, self._runtime.config.vocab_size)
        check_some_tokens(rows)
        info = self._runtime.info
        if self._length and len(rows[0]) > 1 and not info.capabilities.appends_many:
            raise GenerationError(
                f"runtime {info.runtime} cannot append several tokens to {self._length} that "
                "are there: decode them one by one, or reset and prefill all"
            )
        return rows

    def _cut(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """A prompt in pieces; whole where a second piece could not be appended."""
        many = self._runtime.info.capabilities.appends_many
        size = (self._runtime.prompt_chunk or PREFILL_CHUNK) if many else len(ids)
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    def _run(self, ids: Sequence[int], wanted: Sequence[int]) -> FloatArray:
        """One call of a graph; returns logits [K, V] of the tokens wanted."""
        total = self._length + len(ids)
        self._make_room(total)
        if len(ids) == 1 and self._runtime.captures:
            logits = self._replay(ids[0])
        else:
            logits = self._call(ids, wanted)
        self._turn, self._length = 1 - self._turn, total
        return logits

    def _call(self, ids: Sequence[int], wanted: Sequence[int]) -> FloatArray:
        graph = self._runtime.graph(len(ids), len(wanted))
        if isinstance(graph, RoutedPrompt):
            return self._call_parts(graph, ids, wanted)
        inputs = self._list_inputs(
            ids, wanted, graph.steps or len(ids), graph.logit_count or len(wanted)
        )
        bindings = self._bindings.setdefault(graph, {})
        if self._turn not in bindings:
            bindings[self._turn] = self._bind_states(graph, self._turn)
        binding = bindings[self._turn]
        for name, array in inputs.items():
            if name in graph.inputs:
                binding.bind_cpu_input(name, array)
        binding.bind_output(LOGITS, "cpu")
        graph.session.run_with_iobinding(binding, uncaptured(self._runtime.can_capture))
        # Outputs come in the order they were bound, and logits are bound last.
        logits: FloatArray = binding.get_outputs()[-1].numpy()[0]
        return logits[: len(wanted)]

    def _call_parts(
        self, parts: RoutedPrompt, ids: Sequence[int], wanted: Sequence[int]
    ) -> FloatArray:
        logit_count = pad_logits(parts.steps, len(wanted))
        inputs = self._list_inputs(ids, wanted, parts.steps, logit_count)
        logits = parts.run(inputs, self._name_states(self._turn), len(ids), logit_count)
        return logits[: len(wanted)]

    def _list_inputs(
        self, ids: Sequence[int], wanted: Sequence[int], steps: int, logit_count: int
    ) -> dict[str, Array]:
        width = self._runtime.config.conv_state_width
        return list_inputs(
            ids, self._length, wanted, steps=steps, logit_count=logit_count, conv_width=width
        )

    def _replay(self, token: int) -> FloatArray:
        """One token by commands recorded before, or recorded now."""
        graph = self._runtime.graph(1, 1)
        assert not isinstance(graph, RoutedPrompt)
        if self._captured is None:
            bindings = [self._bind_states(graph, turn) for turn in (0, 1)]
            self._captured = CapturedToken(self._runtime, graph, bindings, self._room)
        return self._captured.run(self._turn, token, self._length)

    def _bind_states(self, graph: Graph, turn: int) -> ort.IOBinding:
        """Every state and bound weight, for calls that read conv buffers `turn`."""
        binding = graph.session.io_binding()
        values = self._name_states(turn)
        for spec in (*self._kv, *self._conv):
            binding.bind_ortvalue_input(spec.input, values[spec.input])
            binding.bind_ortvalue_output(spec.output, values[spec.output])
        for name, value in graph.bound.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def _name_states(self, turn: int) -> dict[str, ort.OrtValue]:
        """Every state by the name of an input and of an output."""
        before, after = self._columns[turn], self._columns[1 - turn]
        values = {}
        for spec, value in zip(self._kv, self._buffers, strict=True):
            values[spec.input] = values[spec.output] = value
        for spec, source, target in zip(self._conv, before, after, strict=True):
            values[spec.input], values[spec.output] = source, target
        return values

    def _place(self, buffers: list[ort.OrtValue], columns: list[ort.OrtValue]) -> None:
        """Take over states on the device; what was bound to others is void."""
        self._buffers = buffers
        self._columns = (columns, self._zeros(self._conv))
        self._turn, self._captured = 0, None
        self._bindings.clear()

    def _make_room(self, total: int) -> None:
        if total <= self._room:
            return
        room = self._runtime.choose_room(total, self.capacity)
        buffers = self._upload([_pad(array, room) for array in self._read(self._buffers)])
        # After the device had room for it.
        self._room = room
        self._place(buffers, self._columns[self._turn])

    def _zeros(self, specs: Sequence[StateSpec]) -> list[ort.OrtValue]:
        memory = self._runtime.memory
        return [memory.zeros(spec.concrete_shape(1, self._room), spec.dtype) for spec in specs]

    def _upload(self, arrays: Sequence[NDArray[Any]]) -> list[ort.OrtValue]:
        return [self._runtime.memory.upload(array) for array in arrays]

    def _read(self, values: Sequence[ort.OrtValue]) -> list[Array]:
        return [self._runtime.memory.read(value) for value in values]


def _pad(array: Array, room: int) -> Array:
    """[1, KV, n, D] -> [1, KV, room, D]."""
    return np.pad(array, ((0, 0), (0, 0), (0, room - array.shape[2]), (0, 0)))
