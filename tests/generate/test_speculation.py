"""Looking ahead changes how fast tokens come, never which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.speculation import Pace, PromptLookup
from lfm2_deploy.tokens import generate_tokens
from runtimes.fake import FakeRuntime, FakeSession

from .scripts import EOS, PROMPT, Script, calls

VOCAB = 50
LOOP = [11, 12, 13, 14, 15, 16]


# Guesses.


def test_guess_is_what_followed_the_latest_occurrence() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 4, 8, 1, 2])
    assert lookup.guess(2) == [4, 8]


def test_longer_match_wins_over_a_later_short_one() -> None:
    lookup = PromptLookup([7, 1, 2, 3, 5, 1, 2, 9, 7, 1, 2])
    assert lookup.guess(1) == [3]


def test_nothing_is_guessed_where_nothing_matches() -> None:
    assert PromptLookup([1, 2, 3, 4]).guess(5) == []
    assert PromptLookup([]).guess(5) == []
    assert PromptLookup([1]).guess(5) == []


def test_a_row_does_not_find_its_own_end() -> None:
    lookup = PromptLookup([1, 2])
    lookup.extend([3])
    assert lookup.guess(3) == []


def test_repetition_at_the_end_is_continued() -> None:
    assert PromptLookup([1, 2, 3, 1, 2, 3]).guess(7) == [1, 2, 3, 1, 2, 3, 1]
    assert PromptLookup([5, 5, 5]).guess(3) == [5, 5, 5]


# How many.


def learned(costs: dict[int, float], outcomes: list[tuple[int, int]]) -> Pace:
    pace = Pace()
    for tokens, seconds in costs.items():
        pace.learn_cost(tokens, seconds)
    for guessed, right in outcomes:
        pace.learn_outcome(guessed, right)
    return pace


def test_cheap_guesses_that_come_true_are_made_in_full() -> None:
    assert learned({1: 1.0, 5: 1.4}, [(4, 4)] * 5).choose(15) == 15


def test_guesses_that_cost_a_call_each_are_not_made() -> None:
    pace = learned({1: 1.0, 5: 5.0}, [(4, 2)] * 5)
    assert [pace.choose(15) for _ in range(5)] == [0] * 5


def test_guesses_that_never_come_true_are_soon_given_up() -> None:
    pace = learned({1: 1.0, 3: 1.5}, [])
    tried = 0
    for _ in range(1000):
        count = pace.choose(15)
        tried += bool(count)
        pace.learn_outcome(count or 1, 0)
    # Each costs a fraction of a call; they happen at the beginning only.
    assert 1 <= tried <= 4


def test_guesses_that_begin_to_come_true_are_soon_made_again() -> None:
    pace = learned({1: 1.0, 3: 1.5}, [(2, 0)] * 50)
    assert pace.choose(15) == 0
    waited = 0
    while not pace.choose(15):  # compared with what comes anyway, one at a time
        pace.learn_outcome(1, 1)
        waited += 1
    assert 1 <= waited <= 8


# Exactness.


@pytest.fixture
def assumed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls cost what is assumed before any is measured, however fast this machine is."""
    monkeypatch.setattr(Pace, "learn_cost", lambda self, tokens, seconds: None)


def run(
    runtime: FakeRuntime, rows: list[list[int]], most_guesses: int, **options: Any
) -> tuple[dict[int, list[int]], FakeSession]:
    session = runtime.open(len(rows))
    chosen = GenerationOptions().with_overrides(**options)
    tokens: dict[int, list[int]] = {row: [] for row in range(len(rows))}
    for event in generate_tokens(session, rows, chosen, [EOS], most_guesses=most_guesses):
        assert event.token_id is not None
        tokens[event.row].append(event.token_id)
    return tokens, session


def looping(history: Any) -> FloatArray:
    """Logits that like a loop, and sometimes leave it."""
    random = np.random.default_rng(np.asarray(history[-3:], np.int64).sum() * 7919 + len(history))
    logits = random.standard_normal(VOCAB).astype(np.float32)
    logits[LOOP[len(history) % len(LOOP)]] += 4.0
    logits[EOS] = -9
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.5, "seed": 4, "top_p": 0.9, "repetition_penalty": 1.2},
        {"repetition_penalty": 1.3},
    ],
)
def test_tokens_are_those_of_single_steps(assumed_costs: None, options: dict[str, Any]) -> None:
    runtime = FakeRuntime(looping, vocab_size=VOCAB, context_length=300)
    options = {**options, "max_new_tokens": 200}
    rows = [LOOP * 3, [5, 6, 7], LOOP[:2]]
    plain, _ = run(runtime, rows, 0, **options)
    looked, session = run(runtime, rows, 15, **options)
    assert looked == plain
    proposals = [what for kind, what in session.calls if kind == "propose"]
    assert proposals  # it did look ahead
    # As without: every token is held but the last, which was only sampled.
    assert session.lengths == tuple(len(row) + 199 for row in rows)


def test_text_that_repeats_takes_far_fewer_calls(assumed_costs: None) -> None:
    def strict(history: Any) -> FloatArray:
        logits = np.zeros(VOCAB, np.float32)
        logits[LOOP[len(history) % len(LOOP)]] = 9
        return logits

    runtime = FakeRuntime(strict, vocab_size=VOCAB, context_length=300)
    _, session = run(runtime, [LOOP * 3], 15, max_new_tokens=200)
    assert sum(kind in ("decode", "propose") for kind, _ in session.calls) < 40


@pytest.mark.parametrize("end", ["eos", "length", "stop"])
def test_an_answer_that_ends_within_accepted_guesses_ends_there(
    assumed_costs: None, script: Script, end: str
) -> None:
    reply = list(b"abcabcabcabcabcabcabcabc")
    options: dict[str, Any] = {
        "eos": {},
        "length": {"max_new_tokens": 17},
        "stop": {"stop_token_ids": [reply[0]]},
    }[end]
    plain = script(reply).generate(PROMPT, **options)
    ahead = script(reply).generate(PROMPT, prompt_lookup_num_tokens=8, **options)
    assert ahead.token_ids == plain.token_ids
    assert ahead.finish_reason == plain.finish_reason
    assert ahead.text == plain.text


def test_stop_string_within_accepted_guesses_ends_the_text_there(
    assumed_costs: None, script: Script
) -> None:
    text = "one two one two one two one two three"
    plain = script(text).generate(PROMPT, stop="two o")
    ahead = script(text).generate(PROMPT, stop="two o", prompt_lookup_num_tokens=8)
    assert (ahead.text, ahead.stop, ahead.token_ids) == (plain.text, plain.stop, plain.token_ids)


def test_guesses_are_counted(assumed_costs: None, script: Script) -> None:
    answer = script("ab" * 12).generate(PROMPT, prompt_lookup_num_tokens=8)
    assert 0 < answer.guessed_right <= answer.guessed_tokens


def test_no_more_is_proposed_than_the_context_has_room_for(assumed_costs: None) -> None:
    runtime = FakeRuntime(looping, vocab_size=VOCAB, context_length=40)
    tokens, session = run(runtime, [LOOP * 3], 15)
    # The last token needs no place of its own.
    assert len(tokens[0]) == 40 - 18
    assert session.lengths == (39,)


def test_cancel_between_calls_ends_every_row(assumed_costs: None) -> None:
    runtime = FakeRuntime(looping, vocab_size=VOCAB, context_length=300)
    session = runtime.open(1)
    flag = [False]

    class Signal:
        def is_set(self) -> bool:
            return flag[0]

    seen = []
    options = GenerationOptions(max_new_tokens=100)
    for event in generate_tokens(session, [LOOP * 3], options, [], Signal(), most_guesses=8):
        seen.append(event)
        flag[0] = len(seen) > 20
    assert seen[-1].finish_reason == "cancelled"
    assert len(seen) < 60


def test_model_that_cannot_propose_takes_single_steps(script: Script) -> None:
    from lfm2_deploy.contracts import Capabilities

    model = script("ababababab", capabilities=Capabilities(True, True, 0, True, 0))
    assert model.generate(PROMPT, prompt_lookup_num_tokens=8).text == "ababababab"
    assert {kind for kind, _ in calls(model)} == {"prefill", "decode"}


@pytest.mark.parametrize("value", [-1, 1.5, True, "8"])
def test_count_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(GenerationError, match="prompt_lookup_num_tokens"):
        GenerationOptions(prompt_lookup_num_tokens=value)
