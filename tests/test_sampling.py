"""The next token is chosen as transformers chooses it, and the same seed chooses the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.sampling import (
    Sampler,
    SamplingOptions,
    apply_bias,
    apply_count_penalties,
    apply_repetition_penalty,
    apply_temperature,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    measure_logprobs,
)

VOCAB = 512
SEEDS = range(5)
INF = float("inf")


def random_logits(seed: int, *, dropped: int = 0, size: int = VOCAB) -> FloatArray:
    """Normal logits of a language model's spread, some of them -inf."""
    random = np.random.default_rng(seed)
    logits = (4 * random.standard_normal(size)).astype(np.float32)
    logits[random.choice(size, dropped, replace=False)] = -np.inf
    return logits


def tied_logits(seed: int) -> FloatArray:
    """Logits of nine levels only, so that every threshold falls among equals."""
    return np.random.default_rng(seed).integers(-4, 5, VOCAB).astype(np.float32)


def run_theirs(processor: LogitsProcessor, logits: FloatArray, seen: Any = (0,)) -> Any:
    """A processor of transformers, in float64 so that its sums do not round."""
    ids = torch.tensor([list(seen)])
    return processor(ids, torch.from_numpy(logits).double()[None])[0].numpy()


def log_softmax(logits: Any) -> Any:
    return torch.from_numpy(np.asarray(logits)).double().log_softmax(-1).numpy()


def assert_same_kept(ours: FloatArray, theirs: Any) -> None:
    """The same tokens are kept, with their logits; the others are -inf."""
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))
    assert ours.dtype == np.float32


def assert_same_kept_but_for_ties(ours: FloatArray, theirs: Any, logits: FloatArray) -> None:
    """As many tokens of each value are kept: which of several equals goes is arbitrary."""
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs.astype(np.float32)))
    kept = ours != -np.inf
    np.testing.assert_array_equal(ours[kept], logits[kept])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("penalty", [0.5, 1.05, 1.3, 5.0])
def test_repetition_penalty_equals_transformers(seed: int, penalty: float) -> None:
    logits = random_logits(seed, dropped=20)
    logits[[3, 4]] = 0, -np.inf
    seen = np.unique(np.append(np.random.default_rng(seed).integers(0, VOCAB, 60), [3, 4]))
    before = logits.copy()
    ours = apply_repetition_penalty(logits, seen, penalty)
    theirs = run_theirs(RepetitionPenaltyLogitsProcessor(penalty), logits, seen)
    # One float32 multiplication or division: half a unit in the last place, 6e-8.
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
    np.testing.assert_array_equal(logits, before)


def test_repetition_penalty_ignores_ids_beyond_the_logits() -> None:
    logits = random_logits(0)
    ours = apply_repetition_penalty(logits, np.array([VOCAB, VOCAB + 1]), 2.0)
    np.testing.assert_array_equal(ours, logits)


@pytest.mark.parametrize("seed", SEEDS)
def test_bias_equals_transformers(seed: int) -> None:
    logits = random_logits(seed, dropped=20)
    bias = {3: 1.5, 4: -100.0, 500: 0.25}
    theirs = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    before = logits.copy()
    ours = apply_bias(logits, tuple(bias.items()))
    # One float32 addition of numbers up to 128: half a unit in the last place, 4e-6.
    np.testing.assert_allclose(ours, run_theirs(theirs, logits), atol=5e-6)
    np.testing.assert_array_equal(logits, before)


def test_bias_ignores_ids_beyond_the_logits() -> None:
    logits = random_logits(0)
    np.testing.assert_array_equal(apply_bias(logits, ((VOCAB, 5.0),)), logits)


def test_count_penalties_are_openais() -> None:
    # logit - count * frequency - (count > 0) * presence
    logits = np.array([1.0, 2.0, -3.0, 0.5, -np.inf], np.float32)
    before = logits.copy()
    penalized = apply_count_penalties(logits, {1: 1, 2: 3, 4: 2}, 0.5, 0.25)
    np.testing.assert_array_equal(penalized, np.array([1.0, 1.25, -4.75, 0.5, -np.inf], np.float32))
    np.testing.assert_array_equal(logits, before)


def test_bias_comes_before_the_repetition_penalty_and_counts_after_it() -> None:
    logits = np.array([1.0, 1.0, 1.0], np.float32)
    options = SamplingOptions(
        repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=1.0, logit_bias=((0, 3.0),)
    )
    chosen = filter_logits(logits, options, np.array([0, 1]), {0: 2})
    # (1 + 3) / 2 - (2 * 0.5 + 1), 1 / 2, 1
    np.testing.assert_array_equal(chosen, np.array([0.0, 0.5, 1.0], np.float32))


def test_greedy_heeds_count_penalties_of_the_answer_alone() -> None:
    logits = np.array([4.0, 3.5, 1.0], np.float32)
    # Token 0 is in the prompt, which does not count.
    frequency = Sampler(SamplingOptions(frequency_penalty=1.0), [0, 0, 0])
    # 4 / 3.5 | 3 / 3.5 | 3 / 2.5 | 2 / 2.5 | 2 / 1.5 | 1, 1.5, 1 | ties 1, 0.5, 1: the first
    assert [frequency.sample(logits) for _ in range(7)] == [0, 1, 0, 1, 0, 1, 0]
    presence = Sampler(SamplingOptions(presence_penalty=1.0), [0])
    # 4, 3.5 | 3, 3.5 | 3, 2.5: from here on nothing changes
    assert [presence.sample(logits) for _ in range(4)] == [0, 1, 0, 0]


def test_penalty_below_zero_encourages() -> None:
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    sampler = Sampler(SamplingOptions(frequency_penalty=-1.0, logit_bias=((1, 0.5),)), [])
    assert [sampler.sample(logits) for _ in range(3)] == [1, 1, 1]


def test_greedy_heeds_the_bias() -> None:
    logits = np.array([4.0, 3.0], np.float32)
    assert Sampler(SamplingOptions(logit_bias=((0, -100),)), []).sample(logits) == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.5, 20.0])
def test_temperature_equals_transformers(seed: int, temperature: float) -> None:
    logits = random_logits(seed, dropped=20)
    ours = log_softmax(apply_temperature(logits, temperature))
    theirs = log_softmax(run_theirs(TemperatureLogitsWarper(temperature), logits))
    # A subtraction and a division in float32 of numbers up to 300: 2 * 300 * 6e-8.
    np.testing.assert_allclose(ours, theirs, atol=4e-5)


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 5e-324])
def test_tiny_temperature_leaves_the_likeliest_alone(temperature: float) -> None:
    logits = random_logits(0, dropped=20)
    scaled = apply_temperature(logits, temperature)
    assert scaled.argmax() == logits.argmax()
    assert scaled.max() == 0
    assert np.exp(scaled).sum() == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 2, 50, VOCAB - 30, VOCAB - 1, VOCAB, VOCAB + 1])
def test_top_k_equals_transformers(seed: int, k: int) -> None:
    for logits in (random_logits(seed), random_logits(seed, dropped=60), tied_logits(seed)):
        assert_same_kept(keep_top_k(logits, k), run_theirs(TopKLogitsWarper(k), logits))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_top_p_equals_transformers(seed: int, p: float) -> None:
    for logits in (random_logits(seed), random_logits(seed, dropped=60)):
        assert_same_kept(keep_top_p(logits, p), run_theirs(TopPLogitsWarper(p), logits))
    logits = tied_logits(seed)
    theirs = run_theirs(TopPLogitsWarper(p), logits)
    assert_same_kept_but_for_ties(keep_top_p(logits, p), theirs, logits)


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    kept = [np.flatnonzero(keep_top_p(logits, p) != -np.inf).tolist() for p in (0.4, 0.6, 0.9)]
    assert kept == [[0], [0, 1], [0, 1, 2]]


def test_top_p_of_one_candidate_keeps_it() -> None:
    logits = np.full(VOCAB, -np.inf, np.float32)
    logits[7] = -3
    np.testing.assert_array_equal(keep_top_p(logits, 0.5), logits)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("min_p", [1e-6, 0.05, 0.15, 0.9, 1.0])
def test_min_p_equals_transformers(seed: int, min_p: float) -> None:
    for logits in (random_logits(seed), random_logits(seed, dropped=60), tied_logits(seed)):
        assert_same_kept(keep_min_p(logits, min_p), run_theirs(MinPLogitsWarper(min_p), logits))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
        {"temperature": 0.1, "top_k": 50, "repetition_penalty": 1.05},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.5},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.5},
        {"temperature": 3.0, "top_p": 0.95, "min_p": 0.01},
    ],
)
def test_all_filters_together_equal_transformers_in_its_order(
    transformers_models: Mapping[str, Any], options: dict[str, Any], seed: int
) -> None:
    config = GenerationConfig(do_sample=True, **({"top_k": 0} | options))  # type: ignore[no-untyped-call]
    # The method that puts the processors in order has no public name.
    theirs = transformers_models["dense"]._get_logits_processor(config, input_ids_seq_length=1)
    logits = random_logits(seed, dropped=60)
    seen = np.unique(np.random.default_rng(seed).integers(0, VOCAB, 60))
    ours = filter_logits(logits, SamplingOptions(**options), seen)
    expected = run_theirs(theirs, logits, seen)
    np.testing.assert_array_equal(ours == -np.inf, expected == -np.inf)
    # Three float32 operations on numbers up to 200: 3 * 200 * 6e-8.
    np.testing.assert_allclose(log_softmax(ours), log_softmax(expected), atol=4e-5)


def test_filters_that_are_off_cost_nothing() -> None:
    logits = random_logits(0)
    assert filter_logits(logits, SamplingOptions(temperature=1.0), np.arange(9)) is logits
    assert filter_logits(logits, SamplingOptions(top_k=1, top_p=0.1), np.arange(9)) is logits


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_takes_the_likeliest_and_of_equals_the_first(seed: int) -> None:
    logits = random_logits(seed)
    assert Sampler(SamplingOptions(), [1]).sample(logits) == logits.argmax()
    tied = tied_logits(seed)
    assert Sampler(SamplingOptions(), [1]).sample(tied) == np.flatnonzero(tied == tied.max())[0]


def test_greedy_heeds_the_repetition_penalty_of_prompt_and_answer() -> None:
    logits = np.array([4.0, 3.0, 2.5, 1.0], np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), [0])
    # Token 0 is halved from the start, 1 and then 2 once they were chosen.
    assert [sampler.sample(logits) for _ in range(3)] == [1, 2, 0]


def draw(options: SamplingOptions, logits: FloatArray, count: int) -> list[int]:
    sampler = Sampler(options, [1])
    return [sampler.sample(logits) for _ in range(count)]


def test_same_seed_draws_the_same_and_another_does_not() -> None:
    logits = random_logits(0)
    runs = [draw(SamplingOptions(temperature=2.0, seed=s), logits, 30) for s in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_no_seed_draws_differently_each_time() -> None:
    # 4096 tokens, equally likely, 20 draws: equal by chance once in 1e72 runs.
    logits = np.zeros(4096, np.float32)
    first, second = (draw(SamplingOptions(temperature=1.0), logits, 20) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = np.array([1.0, -np.inf, 0.5, 0.0, -1.0, 2.0, 1.5, -np.inf, 0.2, -0.5], np.float32)
    count = 20_000
    drawn = draw(SamplingOptions(temperature=temperature, seed=0), logits, count)
    expected = np.exp(log_softmax(logits / np.float32(temperature))) * count
    observed = np.bincount(drawn, minlength=len(logits))
    possible = expected > 0
    assert observed[~possible].sum() == 0
    chi_square = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    # Eight tokens are possible: with 7 degrees of freedom, 1 in 1000 runs exceeds 24.3.
    assert chi_square < 24.3


def test_filtered_tokens_are_never_drawn() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    assert {*draw(SamplingOptions(temperature=9.0, top_k=2, seed=0), logits, 200)} == {0, 1}


@pytest.mark.parametrize("random", [0.0, 1 - 2**-53])
def test_extreme_random_numbers_land_on_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, random: float
) -> None:
    logits = np.array([-np.inf, -500.0, 1.0, 1.0, -500.0, -np.inf], np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0), [])
    monkeypatch.setattr(sampler, "_random", type("Fixed", (), {"random": lambda self: random})())
    assert sampler.sample(logits) == (2 if random == 0 else 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[1, math.nan], [math.nan, -INF], [1, INF], [-INF, -INF]])
def test_logits_that_are_not_finite_are_refused(temperature: float, bad: list[float]) -> None:
    with pytest.raises(GenerationError, match="logits are not finite"):
        Sampler(SamplingOptions(temperature=temperature), []).sample(np.array(bad, np.float32))


def test_extreme_options_still_draw_a_token() -> None:
    options: dict[str, tuple[Any, ...]] = {
        "temperature": (5e-324, 1e9),
        "repetition_penalty": (1e-9, 1e9),
        "top_p": (1e-9, 1.0),
        "min_p": (0.0, 5e-324, 1.0),
    }
    logits = random_logits(0, dropped=20)
    for values in itertools.product(*options.values()):
        chosen = SamplingOptions(**dict(zip(options, values, strict=True)), seed=0)
        token = Sampler(chosen, range(0, VOCAB, 2)).sample(logits)
        assert logits[token] > -np.inf


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, INF, 10**400, "1", None, True]),
        ("top_k", [-1, 1.5, None, True, "5"]),
        ("top_p", [0, -0.5, 1.01, math.nan, "0.9", False]),
        ("min_p", [-0.01, 1.5, math.nan, "0.1"]),
        ("repetition_penalty", [0, -1.0, math.nan, INF, "1"]),
        ("seed", [-1, 0.5, "0", True]),
        ("presence_penalty", [-2.01, 2.01, math.nan, "1", None, True]),
        ("frequency_penalty", [-3, INF, "0"]),
        (
            "logit_bias",
            [
                ((1, 101.0),),
                ((-1, 0.0),),
                ((1, math.nan),),
                ((1, 2.0), (1, 3.0)),
                ((1,),),
                (("1", 2.0),),
                {1: 2.0},
                [(1, 2.0)],
            ],
        ),
    ],
)
def test_option_out_of_range_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(GenerationError, match=f"^{name} is .*, expected "):
            SamplingOptions(**{name: value})


@pytest.mark.parametrize("seed", SEEDS)
def test_logprobs_are_the_raw_models(seed: int) -> None:
    logits = random_logits(seed, dropped=20)
    expected = log_softmax(logits)
    token = int(expected.argsort()[-4])
    measured = measure_logprobs(logits, token, 3)
    order = expected.argsort()[::-1][:3]
    assert measured.token_id == token
    assert [i for i, _ in measured.top] == order.tolist()
    # Both sum in float64, from differences that float32 rounds to 2e-6 at a width of 30.
    assert measured.logprob == pytest.approx(expected[token], abs=1e-5)
    assert [value for _, value in measured.top] == pytest.approx(expected[order], abs=1e-5)


def test_top_logprobs_of_equals_list_the_lower_id_first() -> None:
    logits = np.array([0, 2, 1, 2, 2], np.float32)
    assert [i for i, _ in measure_logprobs(logits, 0, 2).top] == [1, 3]
    assert [i for i, _ in measure_logprobs(logits, 0, 9).top] == [1, 3, 4, 2, 0]
    assert measure_logprobs(logits, 0, 0).top == ()


def test_logprob_of_an_impossible_token_is_minus_infinity() -> None:
    assert measure_logprobs(np.array([0, -np.inf], np.float32), 1, 0).logprob == -INF
