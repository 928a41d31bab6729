"""Experts chosen by the host: which tokens go where. Pure arithmetic on arrays."""

from __future__ import annotations

from collections.abc import Iterator
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
        experts: [P] which expert takes which piece.
        places: [S, K] in which row the answer of a token's k-th expert is; 0 where in none.
        weights: float32 [S, K] what that answer weighs; 0 where it is in no row.
    """

    rows: IntArray
    experts: IntArray
    places: IntArray
    weights: FloatArray


def plan_calls(
    chosen: IntArray, weights: FloatArray, *, steps: int, pieces: int, size: int
) -> Iterator[Call]:
    """Put each expert's tokens in pieces, and pieces in as few calls as hold them.

    Args:
        chosen: experts of each token, [n, K], each at most once.
        weights: float32 [n, K].
        steps: S, at least n. The rest is padding, and goes to no expert.
        pieces: P, of one call.
        size: C, rows of one piece.
    """
    slots, experts = _place(chosen, size)
    count, in_call = -(-len(experts) // pieces), pieces * size
    rows = np.zeros(count * in_call, np.int64)
    rows[slots] = np.arange(len(chosen))[:, None]
    experts = np.pad(experts, (0, count * pieces - len(experts)))
    for call in range(count):
        here = slots // in_call == call
        places = np.zeros((steps, chosen.shape[1]), np.int64)
        shares = np.zeros(places.shape, np.float32)
        places[: len(chosen)] = np.where(here, slots % in_call, 0)
        shares[: len(chosen)] = np.where(here, weights, 0)
        yield Call(
            rows[call * in_call : (call + 1) * in_call],
            experts[call * pieces : (call + 1) * pieces],
            places,
            shares,
        )


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
