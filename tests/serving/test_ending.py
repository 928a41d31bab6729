"""Answers that are cancelled or fail end by themselves, and others go on."""

from __future__ import annotations

import threading

import pytest

from lfm2_deploy.answers.events import Finished
from lfm2_deploy.errors import (
    GenerationError,
    QueueFullError,
    TemplateError,
)
from lfm2_deploy.tokenizer import Tokenizer

from .asking import LONG, PROMPT, alone, ask_together, wait_until
from .conftest import Gate, MakeEngine, prefilled, runtime_of


def test_leaving_the_loop_cancels(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for _ in engine.stream(PROMPT, max_new_tokens=1900):
        break
    wait_until(lambda: engine.state.running == 0)
    assert engine.state.answers == {"cancelled": 1}


def test_cancelled_answer_ends_with_what_there_is(make_engine: MakeEngine) -> None:
    stream = make_engine().stream(PROMPT, max_new_tokens=1900)
    answer = None
    for event in stream:
        if isinstance(event, Finished):
            answer = event.answer
        else:
            stream.cancel()
    assert answer is not None
    assert answer.finish_reason == "cancelled"
    assert 1 <= len(answer.token_ids) < 1900


def test_request_cancelled_in_the_queue_never_runs(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine(running=1)
    gate.shut()
    first = engine.stream(PROMPT, max_new_tokens=2)
    assert gate.reached.wait(20)
    second = engine.stream([1, 9], max_new_tokens=2)
    second.cancel()
    gate.open.set()
    assert second.answers()[0].finish_reason == "cancelled"
    first.answers()
    assert [1, 9] not in prefilled(engine)


def test_row_that_fails_leaves_others_alone(
    make_engine: MakeEngine, tokenizer: Tokenizer, gate: Gate
) -> None:
    engine = make_engine()
    gate.poisoned = lambda tokens: 666 in tokens and len(tokens) > 5
    bad = engine.stream([1, 666, 3], max_new_tokens=20)
    good = engine.stream([1, 5, 3], max_new_tokens=20)
    with pytest.raises(GenerationError, match="not finite"):
        bad.answers()
    assert good.answers()[0].token_ids == alone(tokenizer, [1, 5, 3], max_new_tokens=20)
    assert engine.state.answers == {"error": 1, "length": 1}


def test_batch_that_fails_ends_its_rows_and_the_next_request_runs(
    make_engine: MakeEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    runtime = runtime_of(engine)
    opened = runtime.open_rows

    def open_broken(most: int) -> object:
        rows = opened(most)
        monkeypatch.setattr(rows, "decode", lambda tokens: 1 / 0)
        return rows

    monkeypatch.setattr(runtime, "open_rows", open_broken)
    gate.shut()
    streams = [engine.stream([1, 5 + i], max_new_tokens=20) for i in range(2)]
    gate.open.set()
    for stream in streams:
        with pytest.raises(ZeroDivisionError):
            stream.answers()
    monkeypatch.setattr(runtime, "open_rows", opened)
    assert len(engine.generate(PROMPT, max_new_tokens=3).token_ids) == 3
    assert engine.state.running == 0


def test_sessions_stay_as_many_as_the_limits_allow(make_engine: MakeEngine) -> None:
    engine = make_engine(running=2, kept=1)
    for i in range(12):
        ask_together(engine, [[1, i, 2], [1, i, 3], [1, i, 4]], max_new_tokens=2)
    assert len(runtime_of(engine).sessions) <= 3


def test_closing_ends_an_answer_whose_request_is_being_begun(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    scheduler = engine._scheduler
    lease, begun, go_on = scheduler._pool.lease, threading.Event(), threading.Event()

    def lease_slowly(ids: list[int]) -> object:
        begun.set()
        assert go_on.wait(20)
        return lease(ids)

    monkeypatch.setattr(scheduler._pool, "lease", lease_slowly)
    stream = engine.stream(PROMPT, max_new_tokens=1900)
    assert begun.wait(20)
    assert engine.drain(timeout=0.01) is False  # it is neither in the queue nor running
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_until(lambda: scheduler.has_ended)
    go_on.set()
    closing.join(20)
    assert stream.answers()[0].finish_reason == "cancelled"


def test_request_that_cannot_be_begun_ends_with_the_error(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr("lfm2_deploy.serving.scheduler.Row", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate(PROMPT, max_new_tokens=2)
    assert len(engine.generate(PROMPT, max_new_tokens=2).token_ids) == 2


def test_short_prompt_does_not_wait_for_long_ones(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    gate.shut()
    long = [engine.stream([9 + i, *LONG * 4], max_new_tokens=1) for i in range(2)]
    assert gate.reached.wait(20)
    short = engine.stream(PROMPT, max_new_tokens=1)
    gate.open.set()
    short.answers()
    read = [piece for piece in prefilled(engine) if piece != PROMPT]
    assert len(read) < 8, "the long ones take 26 pieces"
    for stream in long:
        stream.answers()


def test_request_behind_one_that_waits_for_its_prompt_is_begun(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.shut()
    first = engine.stream(LONG, max_new_tokens=1)
    assert gate.reached.wait(20)
    twin = engine.stream([*LONG, 1], max_new_tokens=1)
    other = engine.stream(PROMPT, max_new_tokens=1)
    gate.open.set()
    other.answers()
    assert first.answers()[0].usage.reused_tokens == 0
    assert twin.answers()[0].usage.reused_tokens == len(LONG)
    order = [piece[:1] for piece in prefilled(engine)]
    assert order.index(PROMPT[:1]) < len(order)


def test_more_answers_than_are_ever_taken_on_are_an_error_of_the_request(
    make_engine: MakeEngine,
) -> None:
    with pytest.raises(GenerationError, match="2 answers at once, and at most 1") as caught:
        make_engine(running=1, waiting=0).stream(PROMPT, n=2)
    assert not isinstance(caught.value, QueueFullError)


def test_full_queue_refuses_before_a_prompt_is_read(
    make_engine: MakeEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(running=1, waiting=0)
    gate.shut()
    stream = engine.stream(PROMPT, max_new_tokens=2)
    assert gate.reached.wait(20)
    monkeypatch.setattr(engine.model, "encode_prompt", lambda *_: pytest.fail("it was read"))
    with pytest.raises(QueueFullError):
        engine.stream("x" * 1000)
    gate.open.set()
    stream.answers()


def test_answers_can_be_asked_for_after_the_events(make_engine: MakeEngine) -> None:
    stream = make_engine().stream(PROMPT, max_new_tokens=3, n=2)
    events = list(stream)
    told = [event.answer for event in events if isinstance(event, Finished)]
    assert sorted(told, key=lambda answer: answer.choice) == stream.answers()
    assert list(stream) == []


def test_prompt_counts_once_for_several_answers_and_not_where_nothing_was_read(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(running=1)
    engine.stream(PROMPT, n=3, max_new_tokens=2).answers()
    gate.shut()
    running = engine.stream([1, 5], max_new_tokens=2)
    assert gate.reached.wait(20)
    waiting = engine.stream([1, 6], max_new_tokens=2)
    waiting.cancel()
    gate.open.set()
    running.answers(), waiting.answers()
    assert engine.state.prompt_tokens == len(PROMPT) + 2


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_template_option_that_is_none_is_refused(make_engine: MakeEngine, name: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TemplateError, match=name):
        make_engine().stream(messages, template_options={name: 1})
