"""Metrics against numbers worked out by hand; comparisons of made-up runtimes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lfm2_deploy.compare.compare import compare_runtimes
from lfm2_deploy.compare.metrics import kl_divergence, log_softmax, negative_log_likelihood
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from runtimes.fake import FakeRuntime, hash_logits, scripted_logits

# Results are float64 from float32 logits: inputs like log 3 carry float32's 6e-8.
ROUNDING = 1e-6


def logits_of(*rows: Sequence[float]) -> FloatArray:
    return np.array(rows, np.float32)


def run_script(reply: Sequence[int], vocab_size: int = 10) -> FakeRuntime:
    """A runtime that continues (1, 2) with `reply`, and then with 0."""
    return FakeRuntime(scripted_logits(vocab_size, {(1, 2): reply}, 0), vocab_size=vocab_size)


def run_random(scale: float = 3.0, vocab_size: int = 16) -> FakeRuntime:
    return FakeRuntime(hash_logits(vocab_size, scale), vocab_size=vocab_size)


def test_log_softmax_of_two_classes_gives_their_logs() -> None:
    got = log_softmax(logits_of([math.log(3), 0.0]))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[math.log(0.75), math.log(0.25)]], atol=ROUNDING)


def test_log_softmax_of_huge_logits_stays_finite() -> None:
    got = log_softmax(logits_of([1e30, 1e30], [-1e30, -1e30]))
    np.testing.assert_allclose(got, np.full((2, 2), -math.log(2)), atol=ROUNDING)


def test_log_softmax_leaves_its_argument_alone() -> None:
    logits = logits_of([1.0, 2.0])
    log_softmax(logits)
    assert logits.tolist() == [[1.0, 2.0]]


def test_kl_of_equal_logits_is_zero() -> None:
    logits = logits_of([1.0, -2.0, 3.5], [0.0, 0.0, 9.0])
    assert kl_divergence(logits, logits).tolist() == [0.0, 0.0]


def test_kl_does_not_see_a_shift_of_all_logits() -> None:
    logits = logits_of([1.0, -2.0, 3.5])
    # Both are exact in float32, so only float64's rounding is left.
    assert kl_divergence(logits, logits + 8).item() == pytest.approx(0, abs=1e-12)


def test_kl_of_two_classes_is_as_by_hand() -> None:
    skewed, even = logits_of([math.log(3), 0.0]), logits_of([0.0, 0.0])
    # 0.75 ln(0.75/0.5) + 0.25 ln(0.25/0.5), and the other way round 0.5 ln(4/3).
    assert kl_divergence(skewed, even).tolist() == pytest.approx([0.1308120], abs=ROUNDING)
    assert kl_divergence(even, skewed).tolist() == pytest.approx([0.1438410], abs=ROUNDING)


def test_negative_log_likelihood_takes_each_positions_target() -> None:
    logits = logits_of([math.log(3), 0.0], [math.log(3), 0.0], [0.0, 0.0])
    got = negative_log_likelihood(logits, np.array([0, 1, 1]))
    # -ln 0.75, -ln 0.25, -ln 0.5
    assert got.tolist() == pytest.approx([0.2876821, 1.3862944, 0.6931472], abs=ROUNDING)


def test_equal_runtimes_differ_in_nothing() -> None:
    result = compare_runtimes(run_random(), run_random(), [[1, 2, 3], [4, 5]], greedy_tokens=6)
    assert result.positions == 5
    assert result.max_error == 0
    assert result.kld == 0
    assert result.kld_error == 0
    assert result.same_top == 1
    assert result.reference_perplexity == result.tested_perplexity
    assert (result.greedy_tokens, result.greedy_equal) == (6, 6)


def test_greedy_tokens_are_counted_to_the_first_difference() -> None:
    # The fourth tokens are equal again, and do not count.
    result = compare_runtimes(run_script([3, 4, 5, 6]), run_script([3, 4, 9, 6]), [[1, 2]], 4)
    assert (result.greedy_tokens, result.greedy_equal) == (4, 2)


def test_difference_at_the_first_greedy_token_counts_none() -> None:
    result = compare_runtimes(run_script([3, 4]), run_script([5, 4]), [[1, 2]], 2)
    assert (result.greedy_tokens, result.greedy_equal) == (2, 0)


def test_same_top_is_the_share_of_positions() -> None:
    # Both say 0 after 1. Then one says 3, 4, 5, and the other 9 and, off its script, 0, 0.
    result = compare_runtimes(run_script([3, 4, 5]), run_script([9]), [[1, 2, 3, 4]], 0)
    assert result.positions == 4
    assert result.same_top == 0.25
    # A scripted logit is 10, all others are 0.
    assert (result.max_error, result.scale) == (10, 10)


def test_kld_and_its_error_are_of_the_positions() -> None:
    def even(history: Sequence[int]) -> FloatArray:
        return np.zeros(2, np.float32)

    def skewed_after_two(history: Sequence[int]) -> FloatArray:
        return logits_of([math.log(3) if len(history) == 2 else 0.0, 0.0])[0]

    reference = FakeRuntime(even, vocab_size=2, eos_token_ids=(1,))
    result = compare_runtimes(
        reference, FakeRuntime(skewed_after_two, vocab_size=2, eos_token_ids=(1,)), [[1, 1]], 0
    )
    # Positions of 0 and 0.143841: their mean, and deviation 0.0719205 over the root of 2.
    assert result.kld == pytest.approx(0.0719205, abs=ROUNDING)
    assert result.kld_error == pytest.approx(0.0508555, abs=ROUNDING)


def test_perplexity_of_even_logits_is_the_vocabulary_size() -> None:
    even = FakeRuntime(hash_logits(16, scale=0.0), vocab_size=16)
    result = compare_runtimes(run_random(), even, [[1, 2, 3], [4, 5]], 0)
    # exp(ln 16) in float64.
    assert result.tested_perplexity == pytest.approx(16, rel=1e-12)
    assert result.reference_perplexity != pytest.approx(16, rel=0.01)


def test_perplexity_is_of_the_next_token_and_of_both_runtimes() -> None:
    # The script gives p(3) = e^10 / (e^10 + 9) after 1, 2 and p(2) = 1 / (e^10 + 9) after 1.
    result = compare_runtimes(run_script([3]), run_random(vocab_size=10), [[1, 2, 3]], 0)
    total = math.exp(10) + 9
    likelihoods = [-math.log(1 / total), -math.log(math.exp(10) / total)]
    # All in float64, of logits exact in float32.
    assert result.reference_perplexity == pytest.approx(math.exp(sum(likelihoods) / 2), rel=1e-9)


def test_perplexity_of_single_tokens_is_nan() -> None:
    result = compare_runtimes(run_random(), run_random(), [[1], [2]], 0)
    assert result.positions == 2
    assert math.isnan(result.reference_perplexity)
    assert math.isnan(result.tested_perplexity)


def test_rows_are_scored_from_an_empty_state() -> None:
    tested = run_random()
    compare_runtimes(run_random(), tested, [[1, 2], [3]], 1)
    calls = [call for session in tested.sessions for call in session.calls]
    assert [call for call in calls if call[0] != "decode"] == [
        ("score", [[1, 2]]),
        ("score", [[3]]),
        ("prefill", [[1, 2]]),
    ]
    assert len(tested.sessions) == 3


@pytest.mark.parametrize(("length", "count"), [(60, 4), (64, 0)])
def test_greedy_tokens_stop_where_the_context_ends(length: int, count: int) -> None:
    result = compare_runtimes(run_random(), run_random(), [[1] * length], 32)
    assert (result.greedy_tokens, result.greedy_equal) == (count, count)


def test_shorter_context_of_either_runtime_limits_greedy_tokens() -> None:
    short = FakeRuntime(hash_logits(16), vocab_size=16, context_length=5)
    for pair in ((short, run_random()), (run_random(), short)):
        assert compare_runtimes(*pair, [[1, 2]], 32).greedy_tokens == 3


def test_row_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ContextOverflowError, match="65"):
        compare_runtimes(run_random(), run_random(), [[1] * 65], 0)


def test_other_vocabulary_is_refused_with_both_sizes() -> None:
    with pytest.raises(GenerationError, match="vocabularies differ: 16 and 10"):
        compare_runtimes(run_random(vocab_size=16), run_random(vocab_size=10), [[1]])


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_nothing_to_compare_is_refused(rows: list[list[int]]) -> None:
    with pytest.raises(GenerationError, match="at least one row of tokens"):
        compare_runtimes(run_random(), run_random(), rows)


def test_progress_counts_the_rows() -> None:
    seen: list[tuple[int, int]] = []
    compare_runtimes(
        run_random(),
        run_random(),
        [[1], [2]],
        0,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]
