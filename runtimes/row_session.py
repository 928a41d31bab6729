"""What sessions of one row share: appending in pieces, and ways back.

A subclass runs tokens and moves states; this class counts, checks and keeps marks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Mark, NamedStates, Snapshot
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.session_checks import check_rows, check_some_tokens
from lfm2_deploy.states import StateSpec
from runtimes.marks import Marks

# Conv states, in order of layers.
Saved = list[Any]


class RowSession(ABC):
    """`contracts.Session` of one row."""

    batch_size = 1
    _specs: Sequence[StateSpec]

    def __init__(self, config: Lfm2Config, capacity: int, chunk: int) -> None:
        self.config, self.capacity = config, capacity
        self._chunk, self._length, self._marks = chunk, 0, Marks()
        self._interrupted = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens the row holds now."""
        return (self._length,)

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens; see `contracts.Session.prefill`."""
        return self._append(rows, all_positions=False)

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token; see `contracts.Session.decode`."""
        if list(tokens) == [None]:
            return np.zeros((1, self.config.vocab_size), np.float32)
        return self.prefill([[] if token is None else [token] for token in tokens])

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, with logits after every token; see `contracts.Session.score`."""
        return [self._append(rows, all_positions=True)]

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.propose`."""
        raise GenerationError("this runtime takes no proposals: append tokens for good")

    def accept(self, counts: Sequence[int]) -> None:
        """See `contracts.Session.accept`."""
        raise GenerationError("there is no proposal to accept; this runtime takes none")

    def reset(self) -> None:
        """Empty the row; marks are void."""
        self._marks.clear()
        self._length, self._interrupted = 0, False
        self._clear()

    def mark(self) -> Mark:
        """Note this place; see `contracts.Session.mark`."""
        self._check_whole()
        conv = self._save_conv()
        return self._marks.add(Mark(self.lengths, conv, sum(array.nbytes for array in conv)))

    def rewind(self, mark: Mark) -> None:
        """Go back to a place; see `contracts.Session.rewind`."""
        self._marks.check(mark)
        (self._length,) = mark.lengths
        self._load(self._length, mark.states)
        self._interrupted = False
        self._marks.cut(mark.lengths)

    def snapshot(self, mark: Mark | None = None) -> NamedStates:
        """Copy the states; see `contracts.Session.snapshot`."""
        if mark is None:
            self._check_whole()
            return self._save(self._length, self._save_conv())
        self._marks.check(mark)
        return self._save(mark.lengths[0], mark.states)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot, exactly; see `contracts.Session.restore`."""
        if not isinstance(snapshot, NamedStates) or not self._fits(snapshot):
            raise GenerationError("this snapshot is of another session; restore it there")
        (length,) = snapshot.lengths
        if length > self.capacity:
            raise ContextOverflowError(
                f"the snapshot holds {length} tokens, this session's capacity is {self.capacity}"
            )
        self._marks.clear()
        self._length, self._interrupted = length, False
        self._restore(snapshot)

    def _fits(self, snapshot: NamedStates) -> bool:
        if len(snapshot.lengths) != 1:
            return False
        shapes = {s.input: s.concrete_shape(1, snapshot.lengths[0]) for s in self._specs}
        return shapes == {name: array.shape for name, array in snapshot.arrays.items()}

    def _check_whole(self) -> None:
        if self._interrupted:
            raise GenerationError(
                "the last call was interrupted and left states half written: rewind to a mark, "
                "restore a snapshot, or reset"
            )

    def _append(self, rows: Sequence[Sequence[int]], all_positions: bool) -> FloatArray:
        self._check_whole()
        check_rows(rows, self.lengths, self.capacity, self.config.vocab_size)
        check_some_tokens(rows)
        (row,) = rows
        return self._in_pieces(
            len(row), all_positions, lambda start, stop, keep: self._run(row[start:stop], keep)
        )

    def _in_pieces(
        self, count: int, all_positions: bool, run: Callable[[int, int, int], FloatArray]
    ) -> FloatArray:
        """Append so many positions, at most a chunk at a time.

        Args:
            count: how many.
            all_positions: whether logits of each are wanted.
            run: appends those from the first number up to the second; logits of so many last ones.
        """
        parts: list[FloatArray] = []
        for start in range(0, count, self._chunk):
            stop = min(start + self._chunk, count)
            # True from here until lengths and states agree again, whatever is raised in between.
            self._interrupted = True
            logits = run(start, stop, stop - start if all_positions else 1)
            self._length += stop - start
            self._interrupted = False
            # The next call writes over what this one gave.
            parts = [*parts, logits.copy()] if all_positions else [logits]
        return np.concatenate(parts)

    @abstractmethod
    def _run(self, tokens: Sequence[int], keep: int) -> FloatArray:
        """Append at most a chunk; logits [keep, V] of the last positions."""

    @abstractmethod
    def _clear(self) -> None:
        """Make the states those of an empty row."""

    @abstractmethod
    def _save_conv(self) -> Saved:
        """Copies of the conv states."""

    @abstractmethod
    def _load(self, length: int, conv: Saved) -> None:
        """Put these conv states back, and cut keys and values to a length."""

    @abstractmethod
    def _save(self, length: int, conv: Saved) -> NamedStates:
        """A snapshot of these conv states and of keys and values up to a length."""

    @abstractmethod
    def _restore(self, snapshot: NamedStates) -> None:
        """Take a snapshot's states over."""
