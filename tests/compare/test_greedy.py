"""Greedy texts, judged by what the reference would have chosen."""

from __future__ import annotations

import math

import numpy as np

from lfm2_deploy.compare.greedy import Written, describe_run, judge, write_greedily
from lfm2_deploy.compare.words import Words
from runtimes.fake import FakeRuntime, scripted_logits

WORDS = Words(None)


def run_script(reply: list[int], context_length: int = 64) -> FakeRuntime:
    return FakeRuntime(
        scripted_logits(10, {(1, 2): reply}, 0),
        vocab_size=10,
        eos_token_ids=(9,),
        context_length=context_length,
    )


def test_text_ends_with_the_end_of_turn_token() -> None:
    written = write_greedily(run_script([3, 4, 9, 5]), [1, 2], 8)
    assert written == Written((1, 2), (3, 4, 9))
    assert list(written.request.tokens) == [1, 2, 3, 4]
    assert written.request.first == 1


def test_text_ends_where_the_context_does() -> None:
    written = write_greedily(run_script([3, 4, 5, 6], context_length=4), [1, 2], 8)
    assert written is not None
    assert written.tokens == (3, 4)
    assert write_greedily(run_script([3], context_length=2), [1, 2], 8) is None


def test_first_other_token_and_its_margin_are_as_by_hand() -> None:
    # The reference wants 3, 5, 6; the subject wrote 3, 4, 6.
    chances = np.array([[0.1] * 10] * 3, np.float32)
    chances[0, 3], chances[1, 5], chances[1, 4], chances[2, 6] = 0.5, 0.4, 0.2, 0.9
    written = Written((1, 2), (3, 4, 6))
    run = describe_run(written, judge(written, np.log(chances)), WORDS)
    assert (run.tokens, run.equal, run.common, run.subject_text) == (3, 1, "3", "4 6")
    assert run.reference_choice is not None
    assert run.subject_choice is not None
    assert run.margin is not None
    # 0.4 against 0.2 of a sum of 1.4.
    assert (run.reference_choice.token_id, run.subject_choice.token_id) == (5, 4)
    assert math.isclose(run.reference_choice.probability, 0.4 / 1.4, rel_tol=1e-6)
    assert math.isclose(run.margin, math.log(2), rel_tol=1e-6)
    assert run.agreement == 2 / 3


def test_same_text_has_no_margin() -> None:
    logits = np.eye(10, dtype=np.float32)[[3, 4]]
    written = Written((1, 2), (3, 4))
    run = describe_run(written, judge(written, logits), WORDS)
    assert (run.equal, run.margin, run.reference_choice, run.agreement) == (2, None, None, 1.0)
