"""Several requests at once: each gets what it would get alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lfm2_deploy.answers.events import Finished, TextDelta
from lfm2_deploy.contracts import Capabilities
from lfm2_deploy.tokenizer import Tokenizer

from .asking import LONG, PROMPT, alone, ask_together
from .conftest import ABLE, Gate, MakeEngine, prefilled, runtime_of

APART = replace(ABLE, joins_rows=False)
ONE_BY_ONE = Capabilities(False, False, 1, False)


@pytest.mark.parametrize("able", [ABLE, APART, ONE_BY_ONE])
@pytest.mark.parametrize("exact", [False, True])
def test_answers_at_once_are_those_alone(
    make_engine: MakeEngine, tokenizer: Tokenizer, able: Capabilities, exact: bool
) -> None:
    engine = make_engine(able, running=3, exact_rows=exact)
    prompts = [[1, 100 + i, *range(i)] for i in range(9)]
    options = {"temperature": 1.0, "seed": 5}
    answers = [
        engine.stream(prompt, max_new_tokens=3 + 4 * i, **options)
        for i, prompt in enumerate(prompts)
    ]
    for i, (prompt, stream) in enumerate(zip(prompts, answers, strict=True)):
        expected = alone(tokenizer, prompt, max_new_tokens=3 + 4 * i, **options)
        assert stream.answers()[0].token_ids == expected


def test_request_joins_a_running_batch_between_tokens(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    gate.shut()
    first = engine.stream(PROMPT, max_new_tokens=30)
    assert gate.reached.wait(20)
    second = engine.stream([1, 7, 8], max_new_tokens=10)
    gate.open.set()
    assert len(first.answers()[0].token_ids) == 30
    assert len(second.answers()[0].token_ids) == 10
    (rows,) = runtime_of(engine).rows
    together = [len(call) for call in rows.calls]
    # Nine tokens of the second come from decoding; the first goes on alone.
    assert together[:9] == [2] * 9
    assert set(together[9:]) == {1}


def test_rows_that_must_be_exact_never_join(make_engine: MakeEngine) -> None:
    engine = make_engine(exact_rows=True)
    ask_together(engine, [PROMPT, [1, 5], [1, 6]], max_new_tokens=5)
    assert runtime_of(engine).rows == []


def test_single_request_is_decoded_where_its_prompt_was_read(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.generate(PROMPT, max_new_tokens=5)
    assert runtime_of(engine).rows == []


def test_long_prompt_lets_others_have_tokens_in_between(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.shut()
    first = engine.stream(PROMPT, max_new_tokens=50)
    assert gate.reached.wait(20)
    second = engine.stream(LONG, max_new_tokens=1)
    gate.open.set()
    first.answers(), second.answers()
    assert [len(piece) for piece in prefilled(engine)] == [4, 128, 128, 128, 16]


def test_prompts_that_begin_alike_are_read_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    shared = LONG[:300]
    prompts = [[*shared, 1, 2, 3], [*shared, 4, 5], [*shared, 6]]
    answers = ask_together(engine, prompts, max_new_tokens=4)
    read = sum(map(len, prefilled(engine)))
    # The first has no mark where the second parts from it; the second leaves one for the third.
    assert read == 303 + 302 + 1
    assert [a.usage.reused_tokens for a in answers] == [0, 0, 300]


def test_several_answers_to_one_prompt_read_it_once(
    make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    engine = make_engine()
    options = {"max_new_tokens": 6, "temperature": 1.0}
    answers = engine.stream(PROMPT, n=3, seed=8, **options).answers()
    assert prefilled(engine) == [PROMPT]
    expected = [alone(tokenizer, PROMPT, seed=8 + i, **options) for i in range(3)]
    assert [answer.token_ids for answer in answers] == expected
    assert [answer.choice for answer in answers] == [0, 1, 2]


def test_next_turn_after_a_shared_batch_reads_only_what_is_new(
    make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    engine = make_engine()
    first, _ = ask_together(engine, [PROMPT, [1, 5]], max_new_tokens=12)
    turn = [*PROMPT, *first.token_ids, 9, 9]
    second = engine.generate(turn, max_new_tokens=3)
    assert [first.token_ids[-1], 9, 9] in prefilled(engine)
    assert second.token_ids == alone(tokenizer, turn, max_new_tokens=3)


def test_regenerating_after_a_shared_batch_reads_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first, _ = ask_together(engine, [PROMPT, [1, 5]], max_new_tokens=12)
    before = len(prefilled(engine))
    again = engine.generate(PROMPT, max_new_tokens=12)
    assert again.token_ids == first.token_ids
    assert again.usage.reused_tokens == len(PROMPT)
    assert len(prefilled(engine)) == before


def test_events_joined_are_the_answer(make_engine: MakeEngine) -> None:
    events = list(make_engine().stream("It was", max_new_tokens=20, logprobs=2))
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    deltas = [event for event in events[:-1] if isinstance(event, TextDelta)]
    assert "".join(delta.text for delta in deltas) == answer.text
    assert [one.token_id for delta in deltas for one in delta.logprobs] == list(answer.token_ids)
    assert answer.logprobs == tuple(one for delta in deltas for one in delta.logprobs)


def test_stop_string_ends_only_its_own_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = engine.generate("It was", max_new_tokens=20)
    stop = whole.text[8:11]
    other = engine.stream("It is", max_new_tokens=20)
    stopped = engine.generate("It was", max_new_tokens=20, stop=stop)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert (stopped.finish_reason, stopped.stop) == ("stop", stop)
    assert len(other.answers()[0].token_ids) == 20
