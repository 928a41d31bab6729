"""Snapshots of scripted sessions, and rows that come and go over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lfm2_deploy.contracts import FloatArray, Snapshot
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.session_checks import check_rows

if TYPE_CHECKING:
    from runtimes.fake import FakeRuntime


@dataclass(frozen=True, slots=True)
class FakeSnapshot:
    """The tokens of every row at one moment."""

    histories: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each row when it was taken."""
        return tuple(len(history) for history in self.histories)

    @property
    def size_bytes(self) -> int:
        """As if a token took eight bytes."""
        return 8 * sum(self.lengths)


class FakeRows:
    """`contracts.Rows` over plain lists of tokens; `calls` lists what it was asked to decode."""

    def __init__(self, runtime: FakeRuntime, most: int) -> None:
        self._runtime, self._most = runtime, most
        self._rows: list[list[int]] = []
        self.calls: list[list[int]] = []

    @property
    def lengths(self) -> tuple[int, ...]:
        """See `contracts.Rows.lengths`."""
        return tuple(map(len, self._rows))

    def join(self, states: Snapshot) -> int:
        """See `contracts.Rows.join`."""
        if len(self._rows) == self._most or not isinstance(states, FakeSnapshot):
            raise GenerationError("there is no place for this row: let another leave first")
        self._rows.append(list(states.histories[0]))
        return len(self._rows) - 1

    def leave(self, place: int) -> FakeSnapshot:
        """See `contracts.Rows.leave`."""
        taken, last = self._rows[place], self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last
        return FakeSnapshot((tuple(taken),))

    def decode(self, tokens: Sequence[int]) -> FloatArray:
        """See `contracts.Rows.decode`."""
        self._runtime.check_open()
        self.calls.append(list(tokens))
        check_rows(
            [[token] for token in tokens],
            self.lengths,
            self._runtime.context_length,
            self._runtime.config.vocab_size,
        )
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return np.stack([self._runtime.next_logits(tuple(row)) for row in self._rows])
