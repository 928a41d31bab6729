"""Metrics and means against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lfm2_deploy.compare.metrics import PositionScores, score_positions, top_ids
from lfm2_deploy.compare.summarize import estimate, estimate_perplexity, summarize


def scores(*divergences: float, tested_nll: float = 1.0) -> PositionScores:
    count = len(divergences)
    return PositionScores(
        divergence=np.array(divergences),
        same_top=np.array([True, False] * (count // 2)),
        overlap=np.full(count, 0.8),
        reference_nll=np.full(count, 1.0),
        tested_nll=np.full(count, tested_nll),
        probability_change=np.array([0.3, -0.4] * (count // 2)),
    )


def test_error_is_of_the_windows_means() -> None:
    found = estimate([np.array([1.0, 3.0]), np.array([4.0, 8.0])])
    # Means 2 and 6: their mean, and deviation sqrt(8) over the root of 2.
    assert (found.value, found.error) == (4.0, pytest.approx(2.0))


def test_error_of_one_window_is_of_its_positions() -> None:
    found = estimate([np.array([1.0, 3.0])])
    assert (found.value, found.error) == (2.0, pytest.approx(1.0))
    assert math.isnan(estimate([np.array([1.0])]).error)


def test_perplexity_carries_the_error_of_its_exponent() -> None:
    found = estimate_perplexity([np.array([math.log(4)] * 2), np.array([math.log(16)] * 2)])
    # Of likelihoods log 4 and log 16: mean log 8, error log 2.
    assert found.value == pytest.approx(8)
    assert found.error == pytest.approx(8 * math.log(2))


def test_summary_is_as_by_hand() -> None:
    found = summarize([scores(0.0, 2.0), scores(4.0, 10.0, tested_nll=2.0)])
    divergence = found.divergence
    assert divergence.mean.value == 4.0
    # Windows' means are 1 and 7.
    assert divergence.mean.error == pytest.approx(3.0)
    # Variance of 0, 2, 4, 10 is 56 / 3.
    assert divergence.error_by_position == pytest.approx(math.sqrt(56 / 3) / 2)
    assert (divergence.median, divergence.most) == (3.0, 10.0)
    assert divergence.p99 == pytest.approx(4 + 0.97 * 6)
    assert (divergence.percentiles[0], divergence.percentiles[100]) == (0.0, 10.0)
    assert len(divergence.percentiles) == 101
    assert divergence.by_window == (1.0, 7.0)
    assert divergence.by_position == (2.0, 6.0)
    assert found.same_top.value == 0.5
    assert found.top5_overlap.value == pytest.approx(0.8)
    # Likelihoods 1 and 2 against 1 and 1.
    assert found.perplexity.value == pytest.approx(math.exp(1.5))
    assert found.perplexity_ratio.value == pytest.approx(math.exp(0.5))
    assert found.probability_rms == pytest.approx(math.sqrt((0.09 + 0.16) / 2))


def test_position_is_scored_as_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    tested = np.log(np.array([[0.25, 0.25, 0.5]], np.float32))
    found = score_positions(reference, tested, np.array([0]))
    # 0.5 log 2 + 0.25 log 0.5; float32 logits carry 6e-8.
    assert found.divergence.item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert found.same_top.tolist() == [False]
    # All three tokens are among both models' three likeliest.
    assert found.overlap.tolist() == [1.0]
    assert found.reference_nll.item() == pytest.approx(math.log(2), abs=1e-6)
    assert found.tested_nll.item() == pytest.approx(math.log(4), abs=1e-6)
    assert found.probability_change.item() == pytest.approx(-0.25, abs=1e-6)


def test_overlap_counts_the_references_five() -> None:
    reference = np.arange(12, dtype=np.float32)[None]
    # Its five likeliest are 7 to 11; shifted by 3, the tested five are 10, 11, 0, 1, 2.
    tested = np.roll(np.arange(12, dtype=np.float32), 3)[None]
    assert set(top_ids(tested)[0].tolist()) == {10, 11, 0, 1, 2}
    found = score_positions(reference, tested, np.array([0]))
    assert found.overlap.item() == pytest.approx(2 / 5)


def test_of_equals_the_lowest_id_is_on_top_as_with_argmax() -> None:
    assert top_ids(np.zeros((1, 9), np.float32))[0, 0] == 0
    assert top_ids(np.array([[0.0, 2.0, 2.0, 1.0]], np.float32)).tolist() == [[1, 2, 3, 0]]


def test_log_probabilities_at_the_floor_count_nothing() -> None:
    # As llama.cpp: a base file's p as they are, without those at or below -16.
    reference = np.array([[math.log(0.5), math.log(0.4), -16.0]], np.float32)
    tested = np.array([[0.0, 0.0, 0.0]], np.float32)
    found = score_positions(reference, tested, np.array([0]), floor=-16.0)
    by_hand = 0.5 * math.log(0.5 * 3) + 0.4 * math.log(0.4 * 3)
    assert found.divergence.item() == pytest.approx(by_hand, abs=1e-6)
    assert found.reference_nll.item() == pytest.approx(math.log(2), abs=1e-6)


def test_pieces_of_many_positions_give_what_one_gives() -> None:
    random = np.random.default_rng(0)
    reference, tested = random.standard_normal((2, 130, 20)).astype(np.float32)
    targets = random.integers(0, 20, 130)
    whole = score_positions(reference, tested, targets)
    for at in (0, 63, 64, 129):
        one = score_positions(*(x[at : at + 1] for x in (reference, tested, targets)))
        assert one.divergence.item() == whole.divergence[at]
        assert one.tested_nll.item() == whole.tested_nll[at]


def test_of_equals_the_lower_ids_are_taken_wherever_the_list_ends() -> None:
    rng = np.random.default_rng(0)
    for scores in (
        np.zeros((3, 300), np.float32),
        rng.integers(0, 3, (20, 300)).astype(np.float32),
        np.where(rng.random((20, 300)) < 0.99, -np.inf, 1.0),
    ):
        wanted = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
        assert top_ids(scores).tolist() == wanted.tolist()
