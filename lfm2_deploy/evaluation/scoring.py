"""Contexts and continuations as token ids -> how likely each continuation is.

Enters: a runtime, and pairs of context and continuation. Leaves: for each pair its
log-probability, and whether greedy decoding would write it. What several pairs have in
common is computed once: pairs are walked as a tree of prefixes, the session goes back to
a mark at each fork. Knows contracts, and nothing of text, tasks or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from lfm2_deploy.contracts import Capabilities, FloatArray, Mark, Runtime, Session
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.generate import choose_slice

# Logits that are in memory at once: 128 tokens of a vocabulary of 65,536 are 34 MB.
_LOGITS_BYTES = 2**25
# What logits of a token and their normalizing cost, beside reading the token: measured on the
# 350M's shape in int4, 64 tokens in 366 ms of CPU, with all their logits in 459.
_LOGITS_SHARE = 0.25
# As `_LOGITS_BYTES`, where a prompt cannot be read in pieces.
_LARGEST_WHOLE_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Pair:
    """A context and what is scored after it.

    Args:
        context: token ids, at least one.
        continuation: token ids; an empty one is certain.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens a model has to read: nothing is predicted from the last one."""
        return (*self.context, *self.continuation)[:-1]


@dataclass(frozen=True, slots=True)
class Score:
    """What a model thinks of a continuation.

    Args:
        logprob: natural logarithm of its probability after the context.
        greedy: whether each of its tokens is the likeliest one.
    """

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Effort:
    """What scoring cost.

    Args:
        asked: tokens of all pairs, had each been read on its own.
        read: tokens that the model really read.
    """

    asked: int = 0
    read: int = 0


def score_pairs(
    runtime: Runtime,
    pairs: Sequence[Pair],
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Score], Effort]:
    """Score every continuation after its context.

    Args:
        runtime: any; what it cannot do is done in another way.
        pairs: in any order.
        advance: told how many more pairs are done.

    Returns:
        One score a pair, in their order, and what it cost.

    Raises:
        GenerationError: a context is empty, an id is outside the vocabulary, or logits are
            not finite.
        ContextOverflowError: a pair does not fit the context.
    """
    if any(not pair.context for pair in pairs):
        raise GenerationError("a context is empty: begin it with the start token")
    tallies = [_Tally(pair) for pair in pairs]
    wanted = sorted((tally for tally in tallies if tally.rest), key=lambda tally: tally.read)
    advance(len(tallies) - len(wanted))
    effort = Effort()
    if wanted:
        session = runtime.open(1, max(len(tally.read) for tally in wanted))
        able, vocab_size = runtime.info.capabilities, runtime.config.vocab_size
        walk = _Walk(session, able, vocab_size, advance)
        walk.run(wanted)
        effort = Effort(sum(len(tally.read) for tally in wanted), walk.tokens_read)
    return [tally.score() for tally in tallies], effort


class _Tally:
    """One pair, and what is known of its score so far."""

    def __init__(self, pair: Pair) -> None:
        self.read = pair.read
        self.first = len(pair.context) - 1
        self.rest = pair.continuation
        self._logprob = 0.0
        self._greedy = True

    def take(self, start: int, rows: _Rows) -> None:
        """Add what logits say: row i follows token `start + i` of what is read."""
        begin = max(start, self.first)
        end = min(start + len(rows), len(self.read))
        if begin >= end:
            return
        tokens = np.array(self.rest[begin - self.first : end - self.first], np.int64)
        logprobs, greedy = rows.look_up(begin - start, tokens)
        self._logprob += logprobs
        self._greedy &= greedy

    def score(self) -> Score:
        return Score(self._logprob, self._greedy)


class _Rows:
    """Logits [N, V], normalized once however many pairs look at them."""

    def __init__(self, logits: FloatArray) -> None:
        self._logits = logits
        self._likeliest = logits.argmax(-1)
        largest = np.take_along_axis(logits, self._likeliest[:, None], axis=-1)
        if not np.isfinite(largest).all():
            raise GenerationError(
                "the model gives logits that are not finite (NaN or infinity), so nothing can be "
                "scored: see lfm2-deploy compare, which says where they begin"
            )
        # Summed in float64: 65,536 float32 terms would lose a digit or two.
        totals = np.exp(logits - largest).sum(-1, dtype=np.float64)
        self._normalizers = largest[:, 0].astype(np.float64) + np.log(totals)

    def __len__(self) -> int:
        return len(self._logits)

    def look_up(self, start: int, tokens: np.ndarray) -> tuple[float, bool]:
        """Log-probability of tokens from a row on, and whether all are the likeliest."""
        rows = np.arange(start, start + len(tokens))
        logprobs = self._logits[rows, tokens].astype(np.float64) - self._normalizers[rows]
        return float(logprobs.sum()), bool((self._likeliest[rows] == tokens).all())


class _Walk:
    """One session on its way through a tree of prefixes."""

    def __init__(
        self, session: Session, able: Capabilities, vocab_size: int, advance: Callable[[int], None]
    ) -> None:
        self._session, self._able, self._advance = session, able, advance
        self._shares = able.rewinds and able.appends_many
        self._row_bytes = 4 * vocab_size
        chunk = able.chunk or 1
        self._piece = max(chunk, _LOGITS_BYTES // self._row_bytes // chunk * chunk)
        self.tokens_read = 0

    def run(self, tallies: Sequence[_Tally]) -> None:
        """Score pairs that are sorted by what is read.

        A group has its first `known` tokens in common, of which the session holds those up to
        the mark (None for the start). Not recursive: prefixes of prefixes can be many.
        """
        todo: list[tuple[Sequence[_Tally], int, Mark | None]] = [(tallies, 0, None)]
        while todo:
            group, known, mark = todo.pop()
            self._go_back(mark)
            first, last = group[0].read, group[-1].read
            if first == last:
                self._feed(group, len(first))
                self._advance(len(group))
                continue
            common = _count_common(first, last, known)
            if self._pays(group, self._session.lengths[0], common):
                self._feed(group, common)
                mark = self._session.mark()
            todo += reversed([(part, common, mark) for part in _split(group, common)])

    def _go_back(self, mark: Mark | None) -> None:
        if self._session.lengths[0] == (0 if mark is None else mark.lengths[0]):
            return
        if mark is None:
            self._session.reset()
        else:
            self._session.rewind(mark)

    def _pays(self, group: Sequence[_Tally], held: int, common: int) -> bool:
        """Whether reading what a group has in common first is less work than without."""
        if not self._shares or common <= held:
            return False
        lengths = [len(read) for read, _ in groupby(tally.read for tally in group)]
        cost = self._cost
        together = cost(common - held) + sum(cost(length - common) for length in lengths)
        return together < sum(cost(length - held) for length in lengths)

    def _cost(self, tokens: int) -> int:
        """Work of one call, in tokens: whole chunks, or the tokens and reading the weights."""
        if self._able.chunk:
            return -(-tokens // self._able.chunk) * self._able.chunk
        return tokens + self._able.tokens_per_step if tokens else 0

    def _feed(self, group: Sequence[_Tally], end: int) -> None:
        """Read up to token `end` of a group, and hand the pairs the logits they want."""
        ids, start = group[0].read, self._session.lengths[0]
        if start == end:  # all of it is what longer pairs share, and was taken from there
            return
        first = max(start, min(tally.first for tally in group))
        self.tokens_read += end - start
        for begin, logits in self._read(ids, start, min(first, end - 1), end):
            rows = _Rows(logits)
            for tally in group:
                tally.take(begin, rows)

    def _read(
        self, ids: Sequence[int], start: int, first: int, end: int
    ) -> Iterator[tuple[int, FloatArray]]:
        """Append ids[start:end]; logits from token `first` on, and where each piece begins."""
        able = self._able
        whole = end * self._row_bytes <= _LARGEST_WHOLE_BYTES
        if not able.appends_many and able.scores_all and first + 1 < end and whole:
            # Reading all from the start, in one call, is less work than single tokens.
            yield 0, self._session.score([ids[:end]])[0]
        elif not able.appends_many or not able.scores_all:
            yield first, self._prefill(ids[start : first + 1])
            for place in range(first + 1, end):
                yield place, self._session.decode([ids[place]])
        else:
            yield from self._read_pieces(ids, start, first, end)

    def _read_pieces(
        self, ids: Sequence[int], start: int, first: int, end: int
    ) -> Iterator[tuple[int, FloatArray]]:
        few, all_ = end - first - 1, end - start
        apart = self._cost(first + 1 - start) + self._cost(few) + few * _LOGITS_SHARE
        if apart <= self._cost(all_) + all_ * _LOGITS_SHARE or all_ > self._piece:
            yield first, self._prefill(ids[start : first + 1])
            start = first + 1
        for begin in range(start, end, self._piece):
            yield begin, self._session.score([ids[begin : min(begin + self._piece, end)]])[0]

    def _prefill(self, ids: Sequence[int]) -> FloatArray:
        step = choose_slice(self._able) or len(ids)
        for begin in range(0, len(ids), step):
            logits = self._session.prefill([ids[begin : begin + step]])
        return logits


def _count_common(first: Sequence[int], last: Sequence[int], known: int) -> int:
    """How many leading tokens two rows share, of which `known` are known to."""
    most = min(len(first), len(last))
    return next((at for at in range(known, most) if first[at] != last[at]), most)


def _split(group: Sequence[_Tally], common: int) -> Iterator[list[_Tally]]:
    """Parts of a sorted group that go on alike after what all have in common."""
    for _, part in groupby(group, lambda tally: tally.read[common : common + 1]):
        yield list(part)
