"""A canary's calls on a runtime -> how far its logits are from what they must be.

Enters: a canary and a loaded runtime. Leaves: a `Reading` for each call. Asks the runtime's
capabilities and never which it is. One session takes a row, is reset, and takes the next;
another takes rows of different lengths together, where the runtime can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.canary.record import Call, Canary, Digest, Row
from lfm2_deploy.contracts import FloatArray, Runtime, Session

DoubleArray = NDArray[np.float64]

PROMPT, APPEND, DECODE = "prompt", "append", "decode"


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of one call.

    Args:
        row: the row's name.
        rows: how many rows were in the session.
        number: of the call in its row, from 0.
        length: tokens the row holds after it.
        kind: "prompt", "append" (several tokens on top of others) or "decode".
        error: how far the digest's logits are off, root mean square, as a part of the spread
            (standard deviation) that the sampled ones must have; infinite where one is no number.
        kld: KL divergence in nats, over the likeliest tokens and all others as one: at most
            that of all tokens.
        token: the likeliest token.
        expected: the token that it should be.
        margin: by how much that one leads, in nats.
        off: float64, by how much each logit of the digest is off, as parts of the spread.
    """

    row: str
    rows: int
    number: int
    length: int
    kind: str
    error: float
    kld: float
    token: int
    expected: int
    margin: float
    off: DoubleArray = field(compare=False, repr=False)


def run_canary(canary: Canary, runtime: Runtime) -> list[Reading]:
    """Make every call of a canary.

    Raises:
        GenerationError: the runtime fails.
    """
    able, rows = runtime.info.capabilities, list(canary.rows)
    longest = max(row.length for row in rows)
    together = len(rows) > 1 and able.max_batch_size != 1
    # The last one is the longest; beside it, another is padded where a graph takes both.
    alone = rows[:-1] if together else rows
    session = runtime.open(1, longest)
    readings: list[Reading] = []
    for number, row in enumerate(alone):
        if number:
            session.reset()
        readings += _run_rows([row], session, canary, able.appends_many)
    if together:
        session = runtime.open(2, longest)
        readings += _run_rows([rows[-1], rows[-2]], session, canary, able.appends_many)
    return readings


def _run_rows(
    rows: Sequence[Row], session: Session, canary: Canary, appends_many: bool
) -> Iterator[Reading]:
    """Make the calls of rows side by side; one that has ended stays as it is."""
    lengths = [0] * len(rows)
    for number, calls in enumerate(zip_longest(*(row.calls for row in rows))):
        logits = _append(session, calls, appends_many)
        for index, call in enumerate(calls):
            if call is None:
                continue
            kind = _name_kind(lengths[index], len(call.tokens))
            lengths[index] += len(call.tokens)
            seen = compare_digest(call.expected, logits[index], canary.sampled_ids)
            yield Reading(
                rows[index].name, len(rows), number, lengths[index], kind,
                seen.error, seen.kld, seen.token,
                call.expected.top_ids[0], call.expected.margin, seen.off,
            )  # fmt: skip


def _name_kind(held: int, new: int) -> str:
    if held == 0:
        return PROMPT
    return DECODE if new == 1 else APPEND


def _append(session: Session, calls: Sequence[Call | None], appends_many: bool) -> FloatArray:
    """Append each row's tokens; logits [B, V] after them."""
    tokens = [() if call is None else call.tokens for call in calls]
    longest = max(map(len, tokens))
    if not any(session.lengths) or (appends_many and longest > 1):
        return session.prefill(tokens)
    # Single tokens as they are decoded; several where they cannot be appended otherwise.
    logits = None
    for step in range(longest):
        found = session.decode([row[step] if step < len(row) else None for row in tokens])
        ends = np.array([step < len(row) for row in tokens])[:, None]
        logits = found if logits is None else np.where(ends, found, logits)
    assert logits is not None
    return logits


@dataclass(frozen=True, slots=True)
class Difference:
    """How logits differ from a digest; fields as `Reading` has them."""

    error: float
    kld: float
    token: int
    off: DoubleArray


def compare_digest(expected: Digest, logits: FloatArray, sampled_ids: Sequence[int]) -> Difference:
    """How far logits float32 [V] are from what they must be."""
    wide = logits.astype(np.float64)
    off = (pick_logits(expected, wide, sampled_ids) - list_expected(expected)) / expected.spread
    if not np.isfinite(wide).all():
        finite = np.where(np.isfinite(wide), wide, -np.inf)
        return Difference(math.inf, math.inf, int(finite.argmax()), off)
    highest = wide.max()
    total = highest + math.log(np.exp(wide - highest).sum())
    log_p = np.array(expected.top) - expected.logsumexp
    log_q = wide[list(expected.top_ids)] - total
    error = float(np.sqrt(np.square(off).mean()))
    return Difference(error, _measure_divergence(log_p, log_q), int(wide.argmax()), off)


def pick_logits(expected: Digest, logits: DoubleArray, sampled_ids: Sequence[int]) -> DoubleArray:
    """Those of a digest's tokens among logits [V]: top, then sampled."""
    picked: DoubleArray = logits[[*expected.top_ids, *sampled_ids]]
    return picked


def list_expected(expected: Digest) -> DoubleArray:
    """A digest's logits: top, then sampled."""
    return np.array([*expected.top, *expected.sampled])


def _measure_divergence(log_p: DoubleArray, log_q: DoubleArray) -> float:
    """KL(p || q) over these tokens and all the others as one; never below 0."""
    p, q = np.exp(log_p), np.exp(log_q)
    rest_p, rest_q = (max(1 - float(x.sum()), 1e-9) for x in (p, q))
    inside = float((p * (log_p - log_q)).sum())
    return max(0.0, inside + rest_p * math.log(rest_p / rest_q))
