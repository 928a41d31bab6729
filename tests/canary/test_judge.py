from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lfm2_deploy.canary.judge import Verdict, judge
from lfm2_deploy.canary.record import Canary
from lfm2_deploy.canary.run import run_canary
from lfm2_deploy.contracts import FloatArray
from runtimes.fake import FakeRuntime

from .conftest import NOISE

MakeRuntime = Callable[..., FakeRuntime]
SPREAD = 3.0  # of the fake model's logits


def _noise(size: float, seed: int = 0) -> Callable[[tuple[int, ...], FloatArray], FloatArray]:
    """Random errors of so many spreads, other ones after each token."""

    def change(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        rng = np.random.default_rng([seed, *history])
        return logits + (SPREAD * size * rng.standard_normal(len(logits))).astype(np.float32)

    return change


def _judge(canary: Canary, runtime: FakeRuntime, arithmetic: str = "int8") -> Verdict:
    return judge(canary, run_canary(canary, runtime), arithmetic)


def test_healthy_runtime_passes(canary: Canary, make_runtime: MakeRuntime) -> None:
    verdict = _judge(canary, make_runtime(), "float32")
    assert verdict.outcome == "passed"
    assert verdict.reason == ""
    assert verdict.same_top == verdict.calls == 35


@pytest.mark.parametrize("arithmetic", ["int8", "int16", ""])
def test_usual_noise_passes_and_more_is_doubtful(
    canary: Canary, make_runtime: MakeRuntime, arithmetic: str
) -> None:
    for size, outcome in ((1, "passed"), (1.8, "passed"), (7, "doubtful")):
        verdict = _judge(canary, make_runtime(_noise(size * NOISE)), arithmetic)
        assert verdict.outcome == outcome, size


def test_finer_arithmetic_is_held_to_less(canary: Canary, make_runtime: MakeRuntime) -> None:
    readings = run_canary(canary, make_runtime(_noise(1.5 * NOISE)))
    outcomes = [judge(canary, readings, kind).outcome for kind in ("int8", "float16", "float32")]
    assert outcomes == ["passed", "doubtful", "doubtful"]


def test_garbage_fails_with_place_token_and_figures(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    verdict = _judge(canary, make_runtime(_noise(1.0)))
    assert verdict.outcome == "failed"
    assert re.match(
        r"row '[a-z]+'.* goes wrong at token \d+ \(prompt\): logits are off by [\d.]+ "
        r"of their spread, and by [\d.]+ over the row, expected at most 0.05; its likeliest token",
        verdict.reason,
    )


def _off_in_two_calls(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
    """After 14 tokens in the rows "text" and "steps", and nowhere else."""
    return _noise(0.2 if len(history) == 14 else 0.9 * NOISE)(history, logits)


def test_call_that_may_go_to_another_expert_is_no_fault(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    rows = []
    for row in canary.rows:
        lengths = np.cumsum([len(call.tokens) for call in row.calls])
        calls = (
            replace(call, noise=0.2) if length == 14 else call
            for call, length in zip(row.calls, lengths, strict=True)
        )
        rows.append(replace(row, calls=tuple(calls)))
    knowing = replace(canary, rows=tuple(rows))
    for arithmetic in ("int8", "float16"):
        verdict = _judge(knowing, make_runtime(_off_in_two_calls), arithmetic)
        # Finer arithmetic is held to less in all other calls.
        assert (verdict.outcome == "passed") is (arithmetic == "int8")
        assert "token 14 " not in verdict.reason


def test_call_far_beyond_its_own_noise_is_doubtful(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    verdict = _judge(canary, make_runtime(_off_in_two_calls))
    assert verdict.outcome == "doubtful"
    assert re.match(
        r"row 'text' is off at token 14 \(decode\) by more than rounding explains: ", verdict.reason
    )
    assert verdict.error < verdict.limit


def test_canary_of_version_1_does_not_judge_single_calls(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    rows = tuple(
        replace(row, calls=tuple(replace(call, noise=0.0) for call in row.calls))
        for row in canary.rows
    )
    old = replace(canary, rows=rows)
    assert _judge(old, make_runtime(_off_in_two_calls)).outcome == "passed"
    assert "in a quarter of all calls" in _judge(old, make_runtime(_noise(0.04))).reason


def test_fault_that_begins_on_the_way_and_stays_is_seen(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    def change(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        return _noise(0.5 if len(history) > 14 else 0.0)(history, logits)

    verdict = _judge(canary, make_runtime(change))
    assert verdict.outcome == "failed"
    # The single row is 7 tokens long, so the long ones show it.
    assert re.search("'(text|steps|long)'", verdict.reason)


def test_no_numbers_fail_even_in_one_call(canary: Canary, make_runtime: MakeRuntime) -> None:
    def change(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        return np.full_like(logits, np.nan) if len(history) == 14 else logits

    verdict = _judge(canary, make_runtime(change))
    assert verdict.outcome == "failed"
    assert "NaN" in verdict.reason
    assert "token 14 (decode)" in verdict.reason


@pytest.mark.parametrize(("size", "known"), [(1.0, True), (0.7, True), (0.2, False), (-1.0, False)])
def test_known_fault_is_recognised_within_the_noise(
    canary: Canary, make_runtime: MakeRuntime, size: float, known: bool
) -> None:
    (signature,) = canary.signatures
    ends = np.cumsum([len(call.tokens) for call in canary.rows[0].calls]).tolist()

    def change(history: tuple[int, ...], logits: FloatArray) -> FloatArray:
        logits = _noise(NOISE)(history, logits)
        if len(history) in ends:
            call = canary.rows[0].calls[ends.index(len(history))]
            ids = [*call.expected.top_ids, *canary.sampled_ids]
            for token, count in zip(ids, signature.changes[0], strict=True):
                logits[token] += size * count * signature.unit
        return logits

    verdict = _judge(canary, make_runtime(change))
    assert verdict.outcome == ("doubtful" if known else "passed")
    assert ("the planet were flat" in verdict.reason) is known


def test_verdict_is_json_even_where_nothing_is_a_number(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    verdict = _judge(canary, make_runtime(lambda history, logits: logits * np.float32(np.nan)))
    described = verdict.describe()
    assert described["error"] is None
    assert described["kld"] is None
    assert described["outcome"] == "failed"
