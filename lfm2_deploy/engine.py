"""Prompts as token ids -> new token ids, one step of the whole batch at a time.

Enters: a session and rows of ids. Leaves: one `TokenEvent` a token. Each row gets what
its prompt would get alone. Knows `contracts.Session` and nothing of text.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lfm2_deploy.contracts import FloatArray, Session
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import Sampler, TokenLogprobs, measure_logprobs

FinishReason = Literal["stop", "length", "cancelled"]


class CancelSignal(Protocol):
    """What tells a generation to end early; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to end."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of one row.

    Args:
        row: which prompt it continues.
        token_id: the token, an end-of-turn token included; None if cancelled before one.
        finish_reason: why the row ends here, or None if it goes on.
        logprobs: the model's, where asked for.
    """

    row: int
    token_id: int | None
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None = None


class TokenGeneration:
    """A running generation: iterate it once for its events.

    `prefill_seconds` and `decode_seconds` count the work done so far (decoding from the
    first sampled token on), not the time the consumer takes between events.
    """

    def __init__(
        self,
        session: Session,
        rows: Sequence[Sequence[int]],
        options: GenerationOptions,
        end_ids: Collection[int],
        cancel: CancelSignal | None,
        prefill_slice: int | None,
    ) -> None:
        self._session = session
        self._rows = rows
        self._options = options
        self._end_ids = frozenset(end_ids)
        self._cancel = cancel
        self._slice = prefill_slice or max(map(len, rows))
        self._samplers = [Sampler(options.sampling, row) for row in rows]
        most = options.max_new_tokens
        # `check_room` saw to it that `most` fits.
        self._left = [
            session.capacity - held - len(row) if most is None else most
            for held, row in zip(session.lengths, rows, strict=True)
        ]
        # Row -> its last token, which the next step appends. Rows that ended are absent.
        self._live: dict[int, int | None] = dict.fromkeys(range(len(rows)))
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0

    def __iter__(self) -> Iterator[TokenEvent]:
        logits = self._prefill()
        if logits is None:
            yield from self._cancel_rows()
            return
        yield from self._choose(logits)
        while self._live:
            if self._cancelled():
                yield from self._cancel_rows()
                return
            started = time.perf_counter()
            logits = self._session.decode([self._live.get(row) for row in range(len(self._rows))])
            self.decode_seconds += time.perf_counter() - started
            yield from self._choose(logits)

    def _prefill(self) -> FloatArray | None:
        """[B, V] logits after every prompt; None when cancelled on the way."""
        logits: FloatArray | None = None
        for start in range(0, max(map(len, self._rows)), self._slice):
            if self._cancelled():
                return None
            pieces = [row[start : start + self._slice] for row in self._rows]
            started = time.perf_counter()
            part = self._session.prefill(pieces)
            self.prefill_seconds += time.perf_counter() - started
            grew = np.array([len(piece) > 0 for piece in pieces])
            logits = part if logits is None else np.where(grew[:, None], part, logits)
        return logits

    def stop(self, row: int) -> None:
        """End a row for a reason of the caller's own; it has no further events."""
        self._live.pop(row, None)

    def _choose(self, logits: FloatArray) -> Iterator[TokenEvent]:
        started = time.perf_counter()
        events = [self._choose_for(row, logits[row]) for row in tuple(self._live)]
        self.decode_seconds += time.perf_counter() - started
        yield from events

    def _choose_for(self, row: int, logits: FloatArray) -> TokenEvent:
        token_id = self._samplers[row].sample(logits)
        top = self._options.logprobs
        logprobs = None if top is None else measure_logprobs(logits, token_id, top)
        self._live[row] = token_id
        self._left[row] -= 1
        reason: FinishReason | None = None
        if token_id in self._end_ids:
            reason = "stop"
        elif self._left[row] == 0:
            reason = "length"
        if reason is not None:
            self.stop(row)
        return TokenEvent(row, token_id, reason, logprobs)

    def _cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()

    def _cancel_rows(self) -> Iterator[TokenEvent]:
        rows, self._live = tuple(self._live), {}
        for row in rows:
            yield TokenEvent(row, None, "cancelled")


def generate_tokens(
    session: Session,
    rows: Sequence[Sequence[int]],
    options: GenerationOptions,
    eos_token_ids: Collection[int] = (),
    cancel: CancelSignal | None = None,
    prefill_slice: int | None = None,
) -> TokenGeneration:
    """Continue every row until it ends; rows may differ in length and end on their own.

    Args:
        session: of as many rows; what it holds already counts as context.
        rows: token ids to append, at least one a row.
        options: when to stop and how to choose. Stop strings are the caller's business:
            see `TokenGeneration.stop`.
        eos_token_ids: the model's own end-of-turn tokens.
        cancel: looked at before every step.
        prefill_slice: append prompts in pieces of so many tokens, and look at `cancel`
            between them; None where the session appends nothing to what it holds.

    Returns:
        An iterable of events. Nothing has run before its first event is asked for.

    Raises:
        GenerationError: no rows, an empty row, or another number than the session's.
        ContextOverflowError: a row and the new tokens asked for do not fit.
    """
    check_rows(rows)
    if len(rows) != session.batch_size:
        raise GenerationError(
            f"{len(rows)} prompts for a session of {session.batch_size} rows: open one of that size"
        )
    held = [before + len(row) for before, row in zip(session.lengths, rows, strict=True)]
    check_room(held, options.max_new_tokens, session.capacity)
    end_ids = {*options.stop_token_ids}
    if not options.ignore_eos:
        end_ids |= {*eos_token_ids, *options.eos_token_ids}
    return TokenGeneration(session, rows, options, end_ids, cancel, prefill_slice)


def check_rows(rows: Sequence[Sequence[int]]) -> None:
    """Refuse a batch without rows, and rows without tokens.

    Raises:
        GenerationError: there is one of those.
    """
    if not rows:
        raise GenerationError("there is no prompt: give at least one")
    for index, row in enumerate(rows):
        if not len(row):
            raise GenerationError(f"{_name(index, rows)} is empty: give at least one token")


def check_room(lengths: Sequence[int], max_new_tokens: int | None, capacity: int) -> None:
    """Refuse, before any work, what the context cannot hold.

    Args:
        lengths: tokens of each prompt.
        max_new_tokens: the number asked for; None needs room for one.
        capacity: most tokens a row can hold, prompt and answer together.

    Raises:
        ContextOverflowError: a row does not fit.
    """
    for index, length in enumerate(lengths):
        if length >= capacity:
            raise ContextOverflowError(
                f"{_name(index, lengths)} has {length} tokens, and the context holds {capacity}, "
                "the answer included: shorten it, or export with a longer context"
            )
        if max_new_tokens is not None and length + max_new_tokens > capacity:
            raise ContextOverflowError(
                f"{_name(index, lengths)} has {length} tokens and max_new_tokens is "
                f"{max_new_tokens}, {length + max_new_tokens} in all, and the context holds "
                f"{capacity}: ask for at most {capacity - length}, or shorten the prompt"
            )


def _name(index: int, among: Sequence[object]) -> str:
    return "the prompt" if len(among) == 1 else f"prompt {index}"
