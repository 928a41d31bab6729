from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lfm2_deploy.canary.record import Canary, digest_logits
from lfm2_deploy.canary.run import compare_digest, run_canary
from runtimes.fake import ALL_CAPABILITIES, FakeRuntime

MakeRuntime = Callable[..., FakeRuntime]


def test_healthy_runtime_is_off_by_the_digits_kept_alone(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    readings = run_canary(canary, make_runtime())
    # Six digits of logits around 3.
    assert max(reading.error for reading in readings) < 1e-5
    assert max(reading.kld for reading in readings) < 1e-5
    assert all(reading.token == reading.expected for reading in readings)


def test_calls_are_those_of_the_script_and_rows_share_a_batch(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime()
    readings = run_canary(canary, runtime)
    alone, together = runtime.sessions
    kinds = [call for call, _ in alone.calls]
    assert kinds == [
        "prefill", "decode", "decode", "prefill", "decode", "decode", "reset",
        "prefill", *["decode"] * 14, "reset",
        "prefill", "decode", "prefill", "decode", "decode",
    ]  # fmt: skip
    assert together.batch_size == 2
    assert {(r.row, r.rows) for r in readings} == {
        ("text", 1), ("steps", 1), ("single", 1), ("single", 2), ("long", 2),
    }  # fmt: skip
    assert [r.kind for r in readings[:6]] == [
        "prompt", "decode", "decode", "append", "decode", "decode",
    ]  # fmt: skip
    assert [r.length for r in readings[:6]] == [12, 13, 14, 19, 20, 21]


def test_runtime_that_cannot_append_gets_single_tokens(
    canary: Canary, make_runtime: MakeRuntime
) -> None:
    able = replace(ALL_CAPABILITIES, appends_many=False)
    readings = run_canary(canary, make_runtime(capabilities=able))
    assert max(reading.error for reading in readings) < 1e-5


def test_runtime_of_single_rows_gets_no_batch(canary: Canary, make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(capabilities=replace(ALL_CAPABILITIES, max_batch_size=1))
    readings = run_canary(canary, runtime)
    assert {(r.row, r.rows) for r in readings} == {
        ("text", 1), ("steps", 1), ("single", 1), ("long", 1),
    }  # fmt: skip
    assert [session.batch_size for session in runtime.sessions] == [1]


def test_difference_is_measured_as_part_of_the_spread() -> None:
    logits = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
    digest = digest_logits(logits, [0, 1, 2, 3])
    assert digest.spread == 1.0
    # All logits shifted alike: the text stays, and it shows.
    found = compare_digest(digest, logits + np.float32(0.5), [0, 1, 2, 3])
    assert found.error == pytest.approx(0.5)
    # Six digits are kept, and what they leave is taken for other tokens.
    assert found.kld == pytest.approx(0, abs=1e-4)


def test_divergence_is_that_of_all_tokens_where_all_are_kept() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    digest = digest_logits(np.log(p).astype(np.float32), [0, 1, 2])
    found = compare_digest(digest, np.log(q).astype(np.float32), [0, 1, 2])
    # The bucket of all other tokens is empty but for 1e-9; six digits are kept.
    assert found.kld == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-4)
    assert found.token == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logit_that_is_no_number_is_infinitely_off(bad: float) -> None:
    logits = np.arange(4, dtype=np.float32)
    digest = digest_logits(logits, [0, 1])
    logits[0] = bad
    found = compare_digest(digest, logits, [0, 1])
    assert math.isinf(found.error)
    assert math.isinf(found.kld)
    assert found.token == 3
