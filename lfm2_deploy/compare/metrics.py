"""Two sets of logits -> how far apart they are. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray

DoubleArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TOP = 5
# A few rows at a time: float64 copies of [512, 128000] logits are half a gigabyte each.
_ROWS_AT_ONCE = 64


def log_softmax(logits: FloatArray) -> DoubleArray:
    """float32 [..., V] -> float64 log-probabilities [..., V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: DoubleArray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


def kl_divergence(reference: FloatArray, tested: FloatArray) -> DoubleArray:
    """KL(reference || tested) at each position, in nats.

    Args:
        reference: logits float32 [N, V].
        tested: logits float32 [N, V].

    Returns:
        float64 [N].
    """
    return _diverge(log_softmax(reference), log_softmax(tested))


def _diverge(p: DoubleArray, q: DoubleArray) -> DoubleArray:
    divergence: DoubleArray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def negative_log_likelihood(logits: FloatArray, targets: IntArray) -> DoubleArray:
    """-log p(target) at each position: logits [N, V], targets [N] -> float64 [N]."""
    chosen = _pick(log_softmax(logits), targets)
    likelihood: DoubleArray = -chosen
    return likelihood


def top_ids(scores: FloatArray | DoubleArray, count: int = TOP) -> IntArray:
    """Ids [N, K] of the likeliest tokens, likeliest first; of equals, the lower id first."""
    count = min(count, scores.shape[-1])
    found = np.argpartition(-scores, count - 1, axis=-1)[:, :count].astype(np.int64)
    # argpartition keeps no order, and argmax, which greedy choice goes by, takes the lower id.
    found.sort(axis=-1)
    chances = np.take_along_axis(scores, found, axis=-1)
    order = np.argsort(np.negative(chances), axis=-1, kind="stable")
    found = np.take_along_axis(found, order, axis=-1)
    least = chances.min(-1, keepdims=True)
    # It takes any of those that are equal to the last.
    for row in np.flatnonzero((scores >= least).sum(-1) > count):
        some = np.flatnonzero(scores[row] >= least[row])
        found[row] = some[np.argsort(-scores[row, some], kind="stable")][:count]
    return found


@dataclass(frozen=True, slots=True)
class PositionScores:
    """What is measured at each of N positions.

    Args:
        divergence: KL(reference || tested), nats.
        same_top: whether both have the same likeliest token.
        overlap: share of the reference's likeliest five that are among the tested five.
        reference_nll, tested_nll: -log p of the true next token.
        probability_change: of the true next token, tested less reference.
    """

    divergence: DoubleArray
    same_top: BoolArray
    overlap: DoubleArray
    reference_nll: DoubleArray
    tested_nll: DoubleArray
    probability_change: DoubleArray

    def take(self, part: slice) -> PositionScores:
        """Those of some positions."""
        return PositionScores(*(getattr(self, name)[part] for name in self.__slots__))


def score_positions(
    reference: FloatArray, tested: FloatArray, targets: IntArray, floor: float | None = None
) -> PositionScores:
    """Compare logits position by position, a few at a time.

    Args:
        reference: logits float32 [N, V]; with `floor`, log-probabilities as they are.
        tested: logits float32 [N, V].
        targets: the true next tokens [N].
        floor: reference log-probabilities at or below it are left out of the divergence, as
            llama.cpp does (its base files hold nothing below the likeliest less 16 nats).
    """
    pieces = [
        _score_piece(reference[part], tested[part], targets[part], floor)
        for part in (slice(at, at + _ROWS_AT_ONCE) for at in range(0, len(targets), _ROWS_AT_ONCE))
    ]
    return join_scores(pieces)


def _score_piece(
    reference: FloatArray, tested: FloatArray, targets: IntArray, floor: float | None
) -> PositionScores:
    p = log_softmax(reference) if floor is None else reference.astype(np.float64)
    q = log_softmax(tested)
    wanted, found = top_ids(reference), top_ids(tested)
    ours, theirs = _pick(p, targets), _pick(q, targets)
    kept = p if floor is None else np.where(p > floor, p, -np.inf)
    return PositionScores(
        divergence=_diverge(kept, q) if floor is None else _diverge_kept(kept, q),
        same_top=wanted[:, 0] == found[:, 0],
        overlap=(wanted[:, :, None] == found[:, None, :]).any(-1).mean(-1),
        reference_nll=-ours,
        tested_nll=-theirs,
        probability_change=np.exp(theirs) - np.exp(ours),
    )


def _diverge_kept(p: DoubleArray, q: DoubleArray) -> DoubleArray:
    """As `_diverge`; tokens of log-probability -inf count nothing."""
    gap = np.where(np.isfinite(p), p - q, 0.0)
    divergence: DoubleArray = (np.exp(p) * gap).sum(-1)
    return divergence


def join_scores(pieces: list[PositionScores]) -> PositionScores:
    """Pieces in order -> one."""
    return PositionScores(
        *(
            np.concatenate([getattr(piece, name) for piece in pieces])
            for name in PositionScores.__slots__
        )
    )


def _pick(log_probabilities: DoubleArray, ids: IntArray) -> DoubleArray:
    chosen: DoubleArray = np.take_along_axis(log_probabilities, ids[:, None], axis=-1)[:, 0]
    return chosen
