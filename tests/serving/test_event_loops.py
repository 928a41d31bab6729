"""An event loop reads answers and is never blocked."""

from __future__ import annotations

import asyncio
import threading

import pytest

from .asking import PROMPT, wait_until
from .conftest import MakeEngine


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
