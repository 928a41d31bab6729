"""Several requests at once: each gets what it would get alone, or is told why not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.answers.events import Answer, Finished, TextDelta
from lfm2_deploy.contracts import Capabilities
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import (
    ClosedError,
    ContextOverflowError,
    GenerationError,
    QueueFullError,
    StoreError,
    TemplateError,
)
from lfm2_deploy.serving.engine import Engine, EngineLimits, LoadProgress
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits

from .conftest import ABLE, VOCAB, Gate, MakeEngine, build_model, prefilled, runtime_of

PROMPT = [1, 100, 101, 102]
LONG = list(range(200, 600))


def wait_until(condition: Callable[[], bool]) -> None:
    """20 s are for a machine that is busy with other things; a fault shows as an assertion."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


def ask_together(engine: Engine, prompts: list[list[int]], **options: object) -> list[Answer]:
    streams = [engine.stream(prompt, **options) for prompt in prompts]
    return [stream.answers()[0] for stream in streams]


def alone(tokenizer: Tokenizer, prompt: list[int], **options: object) -> tuple[int, ...]:
    model = build_model(tokenizer, hash_logits(VOCAB))
    return model.generate(prompt, **options).token_ids


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


# What is refused.


def test_full_queue_refuses_and_takes_requests_again_later(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(running=1, waiting=2)
    gate.shut()
    streams = [engine.stream(PROMPT, max_new_tokens=2)]
    assert gate.reached.wait(20)
    streams += [engine.stream(PROMPT, max_new_tokens=2) for _ in range(2)]
    with pytest.raises(QueueFullError, match="1 answers run and 2 wait"):
        engine.stream(PROMPT)
    assert (engine.state.running, engine.state.waiting, engine.state.refused) == (1, 2, 1)
    gate.open.set()
    assert [len(stream.answers()[0].token_ids) for stream in streams] == [2, 2, 2]
    assert len(engine.generate(PROMPT, max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ([], {}, GenerationError),
        ([VOCAB], {}, GenerationError),
        (PROMPT, {"max_new_tokens": 5000}, ContextOverflowError),
        (PROMPT, {"n": 0}, GenerationError),
        ("text", {"tools": [{"name": "f"}]}, GenerationError),
        (PROMPT, {"temperature": -1}, GenerationError),
    ],
)
def test_request_that_cannot_run_is_refused_at_once(
    make_engine: MakeEngine, prompt: object, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_engine().stream(prompt, **options)


def test_closed_engine_refuses(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.close()
    with pytest.raises(ClosedError, match="closed"):
        engine.generate(PROMPT)
    assert engine.state.loaded is False


def test_draining_engine_finishes_what_runs_and_refuses_more(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.shut()
    stream = engine.stream(PROMPT, max_new_tokens=3)
    assert gate.reached.wait(20)
    assert engine.drain(timeout=0.01) is False
    with pytest.raises(ClosedError, match="shutting down"):
        engine.stream(PROMPT)
    gate.open.set()
    assert engine.drain(timeout=20) is True
    assert len(stream.answers()[0].token_ids) == 3


@pytest.mark.parametrize("limits", [{"running": 0}, {"waiting": -1}, {"idle_seconds": 0.0}])
def test_limits_out_of_range_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(GenerationError, match=next(iter(limits))):
        EngineLimits(**limits)


# Cancelling and failing.


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


# Event loops.


def test_event_loop_reads_several_streams_and_is_never_blocked(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def read(prompt: list[int]) -> int:
        return len([e async for e in engine.astream(prompt, max_new_tokens=10)])

    async def work() -> list[int]:
        return await asyncio.gather(*(read([1, i]) for i in range(6)))

    assert all(count > 1 for count in asyncio.run(work()))


def test_task_that_is_cancelled_cancels_its_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def work() -> None:
        task = asyncio.create_task(engine.agenerate(PROMPT, max_new_tokens=1900))
        while engine.state.running == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    wait_until(lambda: engine.state.running == 0)
    assert engine.state.answers == {"cancelled": 1}


def test_task_that_is_cancelled_while_its_prompt_is_read_leaves_nothing_running(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    reading, go_on = threading.Event(), threading.Event()
    encode = engine.model.encode_prompt

    def read_slowly(prompt: list[int]) -> list[int]:
        reading.set()
        assert go_on.wait(20)
        return encode(prompt)

    monkeypatch.setattr(engine.model, "encode_prompt", read_slowly)

    async def work() -> None:
        task = asyncio.create_task(engine.astart(PROMPT, max_new_tokens=1900))
        await asyncio.to_thread(reading.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(work())
    wait_until(lambda: engine.state.answers == {"cancelled": 1})


def test_loop_that_was_closed_cancels_its_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def leave() -> object:
        return engine.astream(PROMPT, max_new_tokens=1900)

    stream = asyncio.run(leave())
    wait_until(lambda: engine.state.answers == {"cancelled": 1})
    assert engine.state.running == 0
    assert stream is not None


# Loading, unloading.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "demo"
    return lfm2_deploy.export(str(DEMO_MODEL), out, precision="int4").path


def test_loading_tells_its_stages_in_order(bundle: Path) -> None:
    told: list[LoadProgress] = []
    with Engine.load(bundle, canary="always", progress=told.append) as engine:
        assert engine.state.loaded
    stages = list(dict.fromkeys(one.stage for one in told))
    assert stages == ["hashing", "loading", "checking", "ready"]


def test_idle_engine_unloads_and_loads_again_for_the_next_request(bundle: Path) -> None:
    limits = EngineLimits(idle_seconds=0.05)
    with Engine.load(bundle, limits=limits) as engine:
        first = engine.generate("It was", max_new_tokens=5, temperature=0.0)
        wait_until(lambda: not engine.state.loaded)
        again = asyncio.run(engine.agenerate("It was", max_new_tokens=5, temperature=0.0))
        assert again.token_ids == first.token_ids
        assert engine.state.completion_tokens == 10


def test_engine_of_a_loaded_model_cannot_promise_to_load_it_again(tokenizer: Tokenizer) -> None:
    model = build_model(tokenizer, hash_logits(VOCAB))
    with pytest.raises(GenerationError, match=r"Engine\.load"):
        Engine(model, EngineLimits(idle_seconds=1.0))


def test_threads_that_ask_at_once_get_their_own_answers(bundle: Path) -> None:
    prompts = [f"Chapter {i}. It was" for i in range(12)]
    options = {"max_new_tokens": 12, "temperature": 0.0}
    with Engine.load(bundle, limits=EngineLimits(exact_rows=True)) as engine:
        expected = [engine.generate(prompt, **options).token_ids for prompt in prompts]
        found: dict[str, tuple[int, ...]] = {}

        def ask(prompt: str) -> None:
            found[prompt] = engine.generate(prompt, **options).token_ids

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[prompt] for prompt in prompts] == expected


@pytest.mark.parametrize("limits", [EngineLimits(), EngineLimits(idle_seconds=0.05)])
def test_model_of_the_store_can_be_removed_once_it_is_unloaded(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: EngineLimits
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    store = lfm2_deploy.ModelStore()
    name = store.pull(str(bundle)).name
    engine = Engine.load(name, limits=limits)
    ask_together(engine, [PROMPT, [1, 5]], max_new_tokens=4)
    if limits.idle_seconds is None:
        with pytest.raises(StoreError, match="is loaded"):
            store.remove(name)
        engine.close()
    wait_until(lambda: not engine.state.loaded)
    wait_until(lambda: not store.get(name).in_use)
    store.remove(name)
    assert store.list() == ()
    engine.close()


def test_engine_loads_again_after_a_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(bundle) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "_admit", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.generate("It was", max_new_tokens=2)
            wait_until(lambda: not engine.state.loaded)
        assert "division by zero" in engine.state.failure
        assert len(engine.generate("It was", max_new_tokens=2).token_ids) == 2
        assert engine.state.failure == ""


def test_engine_that_was_drained_while_unloaded_takes_nothing_more(bundle: Path) -> None:
    with Engine.load(bundle, limits=EngineLimits(idle_seconds=0.05)) as engine:
        wait_until(lambda: not engine.state.loaded)
        assert engine.drain() is True
        with pytest.raises(ClosedError, match="shutting down"):
            engine.generate("It was")


def test_engine_can_be_closed_while_it_loads_again(bundle: Path) -> None:
    engines: list[Engine] = []

    def close_at_reload(at: LoadProgress) -> None:
        if engines and at.stage == "loading":
            engines[0].close()

    engines.append(
        Engine.load(bundle, limits=EngineLimits(idle_seconds=0.05), progress=close_at_reload)
    )
    wait_until(lambda: not engines[0].state.loaded)
    with pytest.raises(ClosedError, match="while it was loading"):
        engines[0].generate("It was")
