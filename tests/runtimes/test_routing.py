"""Which expert gets which token, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lfm2_deploy.config import MoeConfig
from runtimes.routing import choose_experts, pick_places, plan_calls

MOE = MoeConfig(
    num_experts=4,
    num_experts_per_tok=2,
    num_dense_layers=0,
    moe_intermediate_size=8,
    use_expert_bias=True,
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
)


def array(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_best_scores_choose_and_probabilities_weigh() -> None:
    chosen, weights = choose_experts(
        array([1, 4, 2, 3]), array([0.1, 0.2, 0.3, 0.4]), replace(MOE, routed_scaling_factor=2.0)
    )
    assert chosen.tolist() == [[1, 3]]
    assert np.array_equal(weights, array([0.4, 0.8]))


def test_of_equal_scores_the_lower_number_wins() -> None:
    chosen, _ = choose_experts(array([0, 5, 5, 5], [1, 1, 1, 1]), np.ones((2, 4), np.float32), MOE)
    assert chosen.tolist() == [[1, 2], [0, 1]]


def test_normed_weights_sum_to_one_less_what_guards_against_zero() -> None:
    _, weights = choose_experts(
        array([2, 1, 0, 0]), array([0.5, 0.5, 0, 0]), replace(MOE, norm_topk_prob=True)
    )
    # float32 of 0.5 / (1 + 1e-6).
    assert np.allclose(weights, 0.5 / (1 + 1e-6), rtol=1e-7)


def test_pieces_are_laid_out_expert_by_expert() -> None:
    chosen = np.array([[0, 2], [2, 0], [2, 3]])
    weights = array([1, 2], [3, 4], [5, 6])
    (first, second), places = plan_calls(chosen, weights, pieces=3, size=2)
    # Expert 0 takes tokens 0 and 1; expert 2 tokens 0, 1 and, in a second piece, 2.
    assert first.experts.tolist() == [0, 2, 2]
    assert first.rows.tolist() == [0, 1, 0, 1, 2, 0]
    assert first.weights.tolist() == [1, 4, 2, 3, 5, 0]
    # Expert 3 does not fit: a call of its own, of which two pieces are idle.
    assert second.experts[0] == 3
    assert second.rows.tolist() == [2, 0, 0, 0, 0, 0]
    assert second.weights.tolist() == [6, 0, 0, 0, 0, 0]
    assert places.tolist() == [[0, 2], [3, 1], [4, 6]]


def test_places_elsewhere_and_of_padding_are_one_past_the_last() -> None:
    places = np.array([[0, 6], [3, 11]])
    assert pick_places(places, 3, 0, 6).tolist() == [[0, 6], [3, 6], [6, 6]]
    assert pick_places(places, 3, 6, 6).tolist() == [[6, 0], [6, 5], [6, 6]]


@pytest.mark.parametrize(("count", "size"), [(1, 16), (37, 4), (200, 16), (64, 64)])
def test_every_choice_is_served_once_by_its_expert(count: int, size: int) -> None:
    rng = np.random.default_rng(count)
    chosen = np.argsort(rng.random((count, 8)))[:, :3]
    weights = rng.random((count, 3)).astype(np.float32)
    calls, places = plan_calls(chosen, weights, pieces=4, size=size)
    rows, shares, experts = (np.concatenate(parts) for parts in zip(*calls, strict=True))
    assert len(rows) == len(calls) * 4 * size
    assert len(np.unique(places)) == places.size
    assert np.array_equal(rows[places], np.broadcast_to(np.arange(count)[:, None], (count, 3)))
    assert np.array_equal(experts[places // size], chosen)
    assert np.array_equal(shares[places], weights)
    shares[places] = 0
    assert not shares.any()
