"""One server's engine, and how far it is: loading, ready, draining.

Enters: an engine, or what loads one. Leaves: streams of events for the event loop. The engine is
asked in threads, since it reads templates, compiles grammars and may have to load a model first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from lfm2_deploy.answers.events import Event, Finished
from lfm2_deploy.errors import ContextOverflowError
from lfm2_deploy.generate import Prompt
from lfm2_deploy.server.errors import ApiError, shutting_down, timed_out
from lfm2_deploy.server.facts import ModelFacts, gather_facts
from lfm2_deploy.server.metrics import Metrics
from lfm2_deploy.server.settings import Settings
from lfm2_deploy.serving.engine import Engine, EngineState, Stream

Phase = Literal["loading", "ready", "draining"]
# Threads are made when they are needed; each request that runs or waits holds one.
_MOST_THREADS = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants of the engine; see `Engine.stream`."""

    prompt: Prompt
    overrides: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: str = "auto"
    n: int = 1
    template_options: dict[str, Any] = field(default_factory=dict)


class Hub:
    """What all routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(lambda: self.state)
        self.created = int(time.time())
        self.active = 0
        self.phase: Phase = "loading"
        self._engine: Engine | None = None
        self._facts: ModelFacts | None = None
        self._feeds: set[Feed] = set()
        self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="lfm2-request")

    def open(self, engine: Engine, precision: str = "") -> None:
        """Take requests from now on."""
        self._facts = gather_facts(engine.model, precision)
        self._engine = engine
        if self.phase == "loading":
            self.phase = "ready"

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.settings.names[0]

    @property
    def state(self) -> EngineState | None:
        """The engine's; None while there is none."""
        return None if self._engine is None else self._engine.state

    @property
    def facts(self) -> ModelFacts:
        """Of the model.

        Raises:
            ApiError: it is still loading.
        """
        if self._facts is None:
            wait = {"Retry-After": "2"}
            message = "the model is loading: try again in a moment"
            raise ApiError(503, message, code="loading", headers=wait)
        return self._facts

    def require(self, model: str | None) -> ModelFacts:
        """See that requests are taken, for this model.

        Raises:
            ApiError: 503 while loading or draining, 404 for another model.
        """
        if self.phase == "draining":
            raise shutting_down()
        facts = self.facts
        if model is not None and model not in self.settings.names:
            raise ApiError(
                404,
                f"there is no model {model[:80]!r}: this server has {', '.join(self.settings.names)}",
                param="model",
                code="model_not_found",
            )
        return facts

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have shutting down wait for what is done inside."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def start(self, asked: Asked) -> Feed:
        """Begin an answer.

        Raises:
            Lfm2DeployError: it cannot be begun.
        """
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, self._begin, asked)
        try:
            stream = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_cancel_unwanted)
            raise
        feed = Feed(stream, self)
        self._feeds.add(feed)
        self._pool.submit(feed.pump)
        return feed

    def _begin(self, asked: Asked) -> Stream:
        assert self._engine is not None
        cap, wanted = self.settings.max_tokens, asked.overrides.get("max_new_tokens")
        if cap is None or wanted is not None:
            return self._ask(asked, wanted)
        try:
            return self._ask(asked, cap)
        except ContextOverflowError:
            # There is less room than the cap: then what is left is below it.
            return self._ask(asked, None)

    def _ask(self, asked: Asked, max_new_tokens: int | None) -> Stream:
        assert self._engine is not None
        overrides = {**asked.overrides, "max_new_tokens": max_new_tokens}
        return self._engine.stream(
            asked.prompt,
            tools=asked.tools,
            tool_choice=asked.tool_choice,
            n=asked.n,
            template_options=asked.template_options or None,
            **overrides,
        )

    def drain(self) -> None:
        """Take no more requests; those that run go on."""
        self.phase = "draining"

    def cancel_all(self) -> None:
        """End every answer before its next token."""
        for feed in list(self._feeds):
            feed.cancel()

    def close(self) -> None:
        """Give up the threads; answers must have ended."""
        self.cancel_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def forget(self, feed: Feed) -> None:
        """An answer has ended."""
        self._feeds.discard(feed)


class Feed:
    """The events of one answer, for the event loop; `pump` runs in a thread."""

    def __init__(self, stream: Stream, hub: Hub) -> None:
        self._stream, self._hub = stream, hub
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._began = time.monotonic()
        self._deadline: float | None = None
        if hub.settings.request_seconds is not None:
            self._deadline = self._loop.time() + hub.settings.request_seconds

    def pump(self) -> None:
        """Hand every event over."""
        try:
            for event in self._stream:
                self._put(event)
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Event | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def cancel(self) -> None:
        """End it before its next token; harmless where it has ended."""
        self._stream.cancel()
        self._hub.forget(self)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event, once.

        Raises:
            ApiError: it took too long, or was cut because the server ends.
            Lfm2DeployError: the engine failed.
        """
        is_first = True
        while (item := await self._take()) is not None:
            if isinstance(item, BaseException):
                raise item
            if is_first and not isinstance(item, Finished):
                is_first = False
                self._hub.metrics.observe_first_token(time.monotonic() - self._began)
            if isinstance(item, Finished):
                self._hub.metrics.observe_answer(item.answer.usage)
                if item.answer.finish_reason == "cancelled":
                    raise shutting_down()
            yield item

    async def _take(self) -> Event | BaseException | None:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._queue.get()
        except TimeoutError as error:
            assert self._hub.settings.request_seconds is not None
            raise timed_out(self._hub.settings.request_seconds) from error


def _cancel_unwanted(future: asyncio.Future[Stream]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()
