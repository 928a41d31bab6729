"""An engine that answers by a script: thread-safe, cancellable, and it remembers what was asked."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.answers.events import (
    Answer,
    Event,
    Finished,
    Part,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallStarted,
    Usage,
)
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import QueueFullError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.serving.engine import EngineState
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, hash_logits

VOCAB = 4096
# What an answer that never ends by itself consists of.
_ENDLESS = 100_000


@dataclass(frozen=True)
class Call:
    """What was asked."""

    prompt: Any
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str
    parallel_tool_calls: bool
    n: int
    template_options: Mapping[str, Any] | None
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What to answer.

    Args:
        parts: events of one choice, without its end.
        reason: why it ends.
        pace: seconds before each event.
        error: raised in the place of an end.
        refusal: raised at once.
    """

    parts: tuple[Part, ...] = ()
    reason: str = "stop"
    pace: float = 0.0
    error: Exception | None = None
    refusal: Exception | None = None


def say(*texts: str, **more: Any) -> Reply:
    """An answer of plain text."""
    return Reply(tuple(TextDelta(text) for text in texts), **more)


def endless(pace: float = 0.01) -> Reply:
    """An answer that only ends when it is cancelled."""
    return Reply((TextDelta("on "),) * _ENDLESS, pace=pace)


def call_tool(name: str, *pieces: str, index: int = 0) -> tuple[Part, ...]:
    """Events of one call."""
    start = ToolCallStarted(index, f"call_{index}", name)
    return (start, *(ToolCallArguments(index, piece) for piece in pieces))


@functools.cache
def read_demo() -> tuple[Tokenizer, ChatTemplate]:
    """The demo model's tokenizer and template."""
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    return tokenizer, ChatTemplate.from_folder(DEMO_MODEL, tokenizer.special_tokens)


class FakeStream:
    """The events of one request; they come from a thread, whether somebody reads them or not."""

    def __init__(self, engine: FakeEngine, reply: Reply, n: int) -> None:
        self._engine, self._reply, self._n = engine, reply, n
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        engine.count(1)
        threading.Thread(target=self._run, daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _run(self) -> None:
        try:
            for choice in range(self._n):
                for event in self._answer(choice):
                    self._put(event)
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._engine.count(-1)

    def _put(self, item: Event | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (item := await self._events.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _answer(self, choice: int) -> Iterator[Event]:
        told: list[Part] = []
        reason = self._reply.reason
        for part in self._reply.parts:
            if self._cancelled.wait(self._reply.pace):
                reason = "cancelled"
                break
            told.append(_with_choice(part, choice))
            yield told[-1]
        if self._reply.error is not None:
            raise self._reply.error
        yield Finished(_join(told, reason, choice))


class FakeEngine:
    """Stands in for `Engine`."""

    def __init__(self, *replies: Reply) -> None:
        """Answer with these, one a request, the last one again and again."""
        self.replies = list(replies)
        self.calls: list[Call] = []
        self.running = 0
        self.waiting = 0
        self.failure = ""
        self.preparing = 0.0
        self.lock = threading.Lock()
        tokenizer, template = read_demo()
        runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB)
        self.model = LanguageModel(runtime, tokenizer, template)

    def count(self, change: int) -> None:
        with self.lock:
            self.running += change

    async def astart(
        self,
        prompt: Any,
        options: Any = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> FakeStream:
        given = {name: value for name, value in overrides.items() if value is not None}
        with self.lock:
            self.calls.append(
                Call(prompt, tools, tool_choice, parallel_tool_calls, n, template_options, given)
            )
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await asyncio.sleep(self.preparing)
        if reply.refusal is not None:
            raise reply.refusal
        return FakeStream(self, reply, n)

    @property
    def state(self) -> EngineState:
        refused = sum(isinstance(reply.refusal, QueueFullError) for reply in self.replies)
        totals = (10, 4, 20, {"stop": 2}, refused)
        return EngineState(True, self.running, self.waiting, *totals, failure=self.failure)

    def close(self) -> None:
        pass


def _with_choice(part: Part, choice: int) -> Part:
    if isinstance(part, TextDelta):
        return TextDelta(part.text, part.logprobs, choice)
    if isinstance(part, ReasoningDelta):
        return ReasoningDelta(part.text, part.logprobs, choice)
    if isinstance(part, ToolCallStarted):
        return ToolCallStarted(part.index, part.id, part.name, choice)
    return ToolCallArguments(part.index, part.text, choice)


def _join(parts: Sequence[Part], reason: Any, choice: int) -> Answer:
    started = [part for part in parts if isinstance(part, ToolCallStarted)]
    calls = tuple(
        ToolCall(start.id, start.name, _arguments(parts, start.index)) for start in started
    )
    cut = calls[-1] if calls and not _is_whole(calls[-1]) else None
    calls = calls[:-1] if cut else calls
    if calls and reason == "stop":
        reason = "tool_calls"
    return Answer(
        text="".join(part.text for part in parts if isinstance(part, TextDelta)),
        reasoning="".join(part.text for part in parts if isinstance(part, ReasoningDelta)),
        tool_calls=calls,
        finish_reason=reason,
        usage=Usage(12, max(1, len(parts)), 5, 0.1, 0.5, 1.0),
        choice=choice,
        cut_call=cut,
    )


def _is_whole(call: ToolCall) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(call.arguments), dict)
    return False


def _arguments(parts: Sequence[Part], index: int) -> str:
    mine = (p.text for p in parts if isinstance(p, ToolCallArguments) and p.index == index)
    return "".join(mine)
