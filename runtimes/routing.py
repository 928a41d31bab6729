"""Experts chosen by the host: which tokens go where. Pure arithmetic on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.config import NORM_EPS, MoeConfig
from lfm2_deploy.contracts import FloatArray

IntArray = NDArray[np.int64]


def choose_experts(
    scores: FloatArray, probabilities: FloatArray, moe: MoeConfig
) -> tuple[IntArray, FloatArray]:
    """Which K experts each token takes, and what each weighs.

    Args:
        scores: float32 [n, E], what chooses. Of equal ones the lower number wins, as in ONNX's
            TopK.
        probabilities: float32 [n, E], what weighs.
        moe: K, and how weights are made of probabilities.

    Returns:
        numbers [n, K], best first, and weights float32 [n, K].
    """
    order = np.argsort(-scores, axis=-1, kind="stable")
    chosen = order[:, : moe.num_experts_per_tok].astype(np.int64)
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    if moe.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdims=True) + np.float32(NORM_EPS))
    return chosen, weights * np.float32(moe.routed_scaling_factor)


class Call(NamedTuple):
    """Some pieces of tokens, each for one expert.

    Args:
        rows: [P * C] which token stands in which row; rows without one hold token 0.
        weights: float32 [P * C] what the expert's answer weighs.
        experts: [P] which expert takes which piece.
    """

    rows: IntArray
    weights: FloatArray
    experts: IntArray


def plan_calls(
    chosen: IntArray, weights: FloatArray, *, pieces: int, size: int
) -> tuple[list[Call], IntArray]:
    """Put each expert's tokens in pieces, and pieces in as few calls as hold them.

    Args:
        chosen: experts of each token, [n, K], each at most once.
        weights: float32 [n, K].
        pieces: P, of one call.
        size: C, rows of one piece.

    Returns:
        the calls, and the row [n, K] in which each choice stands, counted over all calls.
    """
    places, experts = _place(chosen, size)
    count = -(-len(experts) // pieces)
    rows, shares = (np.zeros((count, pieces * size), t) for t in (np.int64, np.float32))
    rows.reshape(-1)[places] = np.arange(len(chosen))[:, None]
    shares.reshape(-1)[places] = weights
    experts = np.pad(experts, (0, count * pieces - len(experts))).reshape(count, pieces)
    return [Call(*call) for call in zip(rows, shares, experts, strict=True)], places


def pick_places(places: IntArray, steps: int, begin: int, count: int) -> IntArray:
    """Places among `count` rows from `begin` on, [S, K]; `count` for those elsewhere.

    Args:
        places: [n, K].
        steps: S, at least n. The rest is padding, and has no place.
        begin: first row.
        count: rows.
    """
    found = np.full((steps, places.shape[1]), count, np.int64)
    is_here = (places >= begin) & (places < begin + count)
    found[: len(places)][is_here] = places[is_here] - begin
    return found


def _place(chosen: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """The row of each choice [n, K], counted over all pieces, and each piece's expert."""
    flat = chosen.ravel()
    counts = np.bincount(flat)
    per_expert = -(-counts // size)
    order = np.argsort(flat, kind="stable")
    # Within its expert, each choice's rank: its place in order, less where its expert begins.
    ranks = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat((np.cumsum(per_expert) - per_expert) * size, counts)
    slots = np.empty(len(flat), np.int64)
    slots[order] = starts + ranks
    return slots.reshape(chosen.shape), np.repeat(np.arange(len(counts)), per_expert)
