"""A session of several rows, each in a session of its own.

For models whose kernels let the rows of a batch disturb each other. ONNX Runtime's MoE
and QMoE multiply all tokens that chose an expert together, and the last bit of a row's
result depends on how many there are (onnxruntime 1.32.0); other kernels do the like on
some machines. Where activations are then rounded to 8 bits, that bit grows until tokens
differ. A row of its own gives exactly
what its prompt gives alone, at the price of reading the weights once for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lfm2_deploy.contracts import EmbeddingSession, FloatArray, Mark, Session, Snapshot
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.session_checks import (
    check_counts,
    check_embeddings,
    check_proposal,
    check_rows,
    check_some_tokens,
)


@dataclass(frozen=True, slots=True)
class RowSnapshots:
    """One snapshot for each row."""

    rows: tuple[Snapshot, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each row when it was taken."""
        return tuple(row.lengths[0] for row in self.rows)

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(row.size_bytes for row in self.rows)


class SeparateRows:
    """`contracts.Session` over sessions of one row each."""

    def __init__(
        self,
        rows: Sequence[Session],
        vocab_size: int,
        max_proposal: int = 0,
        embedding_size: int = 0,
    ) -> None:
        """Join sessions.

        Args:
            rows: fresh sessions of one row and equal capacity.
            vocab_size: V.
            max_proposal: most tokens of a proposal.
            embedding_size: H, where rows are `EmbeddingSession`s; else 0.
        """
        self._embedding_size = embedding_size
        self._most_proposed, self._proposed = max_proposal, (0,) * len(rows)
        self._rows, self._vocab_size = tuple(rows), vocab_size
        self.batch_size, self.capacity = len(rows), rows[0].capacity

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""
        return tuple(row.lengths[0] for row in self._rows)

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens to each row; see `contracts.Session.prefill`."""
        self._check(rows)
        check_some_tokens(rows)
        logits = self._no_logits()
        for index, (row, tokens) in enumerate(zip(self._rows, rows, strict=True)):
            if len(tokens):
                logits[index] = row.prefill([tokens])[0]
        return logits

    def prefill_embeddings(self, rows: Sequence[FloatArray]) -> FloatArray:
        """Append embeddings; see `contracts.EmbeddingSession.prefill_embeddings`."""
        if not self._embedding_size:
            raise GenerationError("this runtime takes token ids only, no embeddings")
        own = cast("Sequence[EmbeddingSession]", self._rows)
        rows = check_embeddings(rows, self.lengths, self.capacity, self._embedding_size)
        logits = self._no_logits()
        for index, (row, embeddings) in enumerate(zip(own, rows, strict=True)):
            if len(embeddings):
                logits[index] = row.prefill_embeddings([embeddings])[0]
        return logits

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token to each row; see `contracts.Session.decode`."""
        self._check([[] if token is None else [token] for token in tokens])
        logits = self._no_logits()
        for index, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if token is not None:
                logits[index] = row.decode([token])[0]
        return logits

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, with logits after every token; see `contracts.Session.score`."""
        self._check(rows)
        check_some_tokens(rows)
        nothing = self._no_logits()[:0]
        return [
            row.score([tokens])[0] if len(tokens) else nothing
            for row, tokens in zip(self._rows, rows, strict=True)
        ]

    def reset(self) -> None:
        """Empty every row."""
        for row in self._rows:
            row.reset()

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Append what may be taken back; see `contracts.Session.propose`."""
        check_proposal(rows, self._most_proposed)
        self._check(rows)
        nothing = self._no_logits()[:0]
        self._proposed = tuple(map(len, rows))
        return [
            row.propose([tokens])[0] if len(tokens) else nothing
            for row, tokens in zip(self._rows, rows, strict=True)
        ]

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first of them; see `contracts.Session.accept`."""
        check_counts(counts, self._proposed)
        for row, count, proposed in zip(self._rows, counts, self._proposed, strict=True):
            if proposed:
                row.accept([count])
        self._proposed = (0,) * self.batch_size

    def mark(self) -> Mark:
        """Note this place; see `contracts.Session.mark`."""
        marks = tuple(row.mark() for row in self._rows)
        return Mark(self.lengths, marks, sum(mark.size_bytes for mark in marks))

    def rewind(self, mark: Mark) -> None:
        """Go back to a place; see `contracts.Session.rewind`."""
        for row, own in self._pair(mark):
            row.rewind(own)

    def snapshot(self, mark: Mark | None = None) -> RowSnapshots:
        """Copy the states; see `contracts.Session.snapshot`."""
        if mark is None:
            return RowSnapshots(tuple(row.snapshot() for row in self._rows))
        return RowSnapshots(tuple(row.snapshot(own) for row, own in self._pair(mark)))

    def _pair(self, mark: Mark) -> list[tuple[Session, Mark]]:
        if not isinstance(mark.states, tuple) or len(mark.states) != self.batch_size:
            raise GenerationError("this mark is of another session; rewind that one")
        return list(zip(self._rows, mark.states, strict=True))

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of this session, exactly."""
        if not isinstance(snapshot, RowSnapshots) or len(snapshot.rows) != self.batch_size:
            raise GenerationError("this snapshot is of another session; restore it there")
        for row, saved in zip(self._rows, snapshot.rows, strict=True):
            row.restore(saved)

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        # All rows before any is touched, so that an error appends nothing.
        check_rows(rows, self.lengths, self.capacity, self._vocab_size)

    def _no_logits(self) -> FloatArray:
        return np.zeros((self.batch_size, self._vocab_size), np.float32)
