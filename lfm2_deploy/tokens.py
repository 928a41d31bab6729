"""Prompts as token ids -> new token ids, one step of the whole batch at a time.

Enters: a session and rows of ids. Leaves: one `TokenEvent` a token. Each row gets what
its prompt would get alone. Knows `contracts.Session` and nothing of text.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lfm2_deploy.constraints import Constraint
from lfm2_deploy.contracts import FloatArray, Session
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.row_choice import RowChooser, list_end_ids
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.speculation import Pace, PromptLookup

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


@dataclass(frozen=True, slots=True)
class Start:
    """What a session holds already of its rows' prompts.

    Args:
        held: how many tokens of each prompt.
        logits: [B, V] after the last of them; needed where a whole prompt is held.
    """

    held: tuple[int, ...]
    logits: FloatArray | None = None


class TokenGeneration:
    """A running generation: iterate it once for its events.

    `prefill_seconds` and `decode_seconds` count the work done so far (decoding from the
    first sampled token on), not the time the consumer takes between events. `guessed` and
    `guessed_right` count the tokens that were guessed, and those that came true.
    """

    def __init__(
        self,
        session: Session,
        rows: Sequence[Sequence[int]],
        choosers: Sequence[RowChooser],
        cancel: CancelSignal | None,
        prefill_slice: int | None,
        start: Start,
        most_guesses: int,
        appends_many: bool,
    ) -> None:
        self._session = session
        self._appends_many = appends_many
        self._rows = [row[held:] for row, held in zip(rows, start.held, strict=True)]
        self._first_logits = start.logits
        self._choosers = choosers
        self._cancel = cancel
        self._slice = prefill_slice or max(1, *map(len, self._rows))
        # Row -> its last token, which the next step appends. Rows that ended are absent.
        self._live: dict[int, int | None] = dict.fromkeys(range(len(rows)))
        self._stopped: set[int] = set()
        self._most_guesses = most_guesses
        self._lookups = [PromptLookup(row) for row in rows] if most_guesses else []
        self._pace = Pace()
        # Row -> what was guessed of its next token, and not checked.
        self._unchecked: dict[int, int] = {}
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.guessed = self.guessed_right = 0

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
            guesses = self._guess()
            events = self._check_guesses(guesses) if guesses else self._decode()
            # The caller may stop a row between its events.
            yield from (event for event in events if event.row not in self._stopped)

    def _prefill(self) -> FloatArray | None:
        """[B, V] logits after every prompt; None when cancelled on the way."""
        logits = self._first_logits
        for pieces in self._cut():
            if self._cancelled():
                return None
            started = time.perf_counter()
            part = self._session.prefill(pieces)
            self.prefill_seconds += time.perf_counter() - started
            grew = np.array([len(piece) > 0 for piece in pieces])
            logits = part if logits is None else np.where(grew[:, None], part, logits)
        return logits

    def _cut(self) -> Iterator[list[Sequence[int]]]:
        """The prompts, in pieces that the session can append."""
        rows, size = self._rows, self._slice
        if not self._appends_many:
            held = self._session.lengths
            fresh = [row if not n else [] for row, n in zip(rows, held, strict=True)]
            if any(map(len, fresh)):
                yield fresh
            rows, size = [row if n else [] for row, n in zip(rows, held, strict=True)], 1
        for start in range(0, max(map(len, rows)), size):
            yield [row[start : start + size] for row in rows]

    def stop(self, row: int) -> None:
        """End a row for a reason of the caller's own; it has no further events."""
        self._live.pop(row, None)
        self._stopped.add(row)

    def _decode(self) -> list[TokenEvent]:
        started = time.perf_counter()
        logits = self._session.decode([self._live.get(row) for row in range(len(self._rows))])
        seconds = time.perf_counter() - started
        self.decode_seconds += seconds
        self._pace.learn_cost(1, seconds)
        return self._choose(logits)

    def _choose(self, logits: FloatArray) -> list[TokenEvent]:
        started = time.perf_counter()
        events = [self._choose_for(row, logits[row]) for row in tuple(self._live)]
        self.decode_seconds += time.perf_counter() - started
        return events

    def _choose_for(self, row: int, logits: FloatArray) -> TokenEvent:
        choice = self._choosers[row].choose(logits)
        self._live[row] = choice.token_id
        if self._lookups:
            self._lookups[row].extend([choice.token_id])
            unchecked = self._unchecked.pop(row, None)
            if unchecked is not None:
                self._pace.learn_outcome(1, int(unchecked == choice.token_id))
        if choice.finish_reason is not None:
            self._live.pop(row)
        return TokenEvent(row, choice.token_id, choice.finish_reason, choice.logprobs)

    def _guess(self) -> dict[int, list[int]]:
        """Row -> tokens that may follow its last one; rows without a guess are absent."""
        guesses: dict[int, list[int]] = {}
        if not self._lookups:
            return guesses
        started = time.perf_counter()
        for row in self._live:
            room = self._session.capacity - self._session.lengths[row] - 1
            most = min(self._most_guesses, self._choosers[row].left - 1, room)
            found = self._lookups[row].guess(most) if most > 0 else []
            if found:
                guesses[row] = found
        # Only where something matches is it asked how many pay.
        if guesses:
            count = self._pace.choose(max(map(len, guesses.values())))
            if count == 0:
                self._unchecked = {row: found[0] for row, found in guesses.items()}
            guesses = {row: found[:count] for row, found in guesses.items() if count}
        self.decode_seconds += time.perf_counter() - started
        return guesses

    def _check_guesses(self, guesses: Mapping[int, Sequence[int]]) -> list[TokenEvent]:
        """Let the model judge: of each row, the guesses up to the first that is wrong are kept.

        Tokens are sampled in order from the logits at their places, so they are those that
        single steps would give, whatever was guessed.
        """
        started = time.perf_counter()
        rows = [
            [last, *guesses.get(row, ())] if (last := self._live.get(row)) is not None else []
            for row in range(len(self._rows))
        ]
        logits = self._session.propose(rows)
        self._pace.learn_cost(max(map(len, rows)), time.perf_counter() - started)
        events: list[TokenEvent] = []
        counts = [0] * len(rows)
        for row in tuple(self._live):
            kept = self._judge(row, rows[row], logits[row])
            counts[row] = len(kept)
            events += kept
        self._session.accept(counts)
        for row, guess in guesses.items():
            self._pace.learn_outcome(len(guess), counts[row] - 1)
            self.guessed += len(guess)
            self.guessed_right += counts[row] - 1
        self.decode_seconds += time.perf_counter() - started
        return events

    def _judge(self, row: int, tokens: Sequence[int], logits: FloatArray) -> list[TokenEvent]:
        events = []
        for place in range(len(tokens)):
            event = self._choose_for(row, logits[place])
            events.append(event)
            following = tokens[place + 1] if place + 1 < len(tokens) else None
            if event.finish_reason is not None or event.token_id != following:
                break
        return events

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
    start: Start | None = None,
    most_guesses: int = 0,
    appends_many: bool = True,
    constraints: Sequence[Constraint | None] | None = None,
) -> TokenGeneration:
    """Continue every row until it ends; rows may differ in length and end on their own.

    Args:
        session: of as many rows; what it holds already counts as context.
        rows: token ids to append, at least one a row; with `start`, whole prompts.
        options: when to stop and how to choose. Stop strings are the caller's business:
            see `TokenGeneration.stop`.
        eos_token_ids: the model's own end-of-turn tokens.
        cancel: looked at before every step.
        prefill_slice: append prompts in pieces of so many tokens, and look at `cancel`
            between them; None for whole prompts.
        start: how much of each prompt the session holds already; nothing when None.
        most_guesses: most tokens to look ahead by prompt lookup; the session must be able to
            take a proposal of one more.
        appends_many: whether several tokens can be appended to what the session holds. If not,
            they are appended one by one; prompts of rows that hold nothing, in one piece.
        constraints: what each row's answer must follow, made for that row alone; None for nothing.

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
    start = start or Start((0,) * len(rows))
    counts = zip(session.lengths, rows, start.held, strict=True)
    lengths = [before + len(row) - held for before, row, held in counts]
    check_room(lengths, options.max_new_tokens, session.capacity)
    end_ids = list_end_ids(options, eos_token_ids)
    most = options.max_new_tokens
    choosers = [
        RowChooser(row, options, end_ids, most or session.capacity - length, constraint)
        for row, length, constraint in zip(
            rows, lengths, constraints or [None] * len(rows), strict=True
        )
    ]
    return TokenGeneration(
        session, rows, choosers, cancel, prefill_slice, start, most_guesses, appends_many
    )


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
