"""One server's engine, and how far it is: loading, ready, draining.

Enters: an engine, now or later. Leaves: streams of events for the event loop, each within the time
that a request has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lfm2_deploy.answers.events import Event, Finished
from lfm2_deploy.errors import ContextOverflowError
from lfm2_deploy.generate import Prompt
from lfm2_deploy.server.errors import ApiError, shutting_down, timed_out
from lfm2_deploy.server.facts import ModelFacts, gather_facts
from lfm2_deploy.server.metrics import Metrics
from lfm2_deploy.server.settings import Settings
from lfm2_deploy.serving.engine import Engine, EngineState
from lfm2_deploy.serving.prompting import ToolChoice
from lfm2_deploy.serving.streams import AsyncStream

Phase = Literal["loading", "ready", "draining"]
Health = Literal["loading", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants of the engine; see `Engine.stream`."""

    prompt: Prompt
    overrides: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
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
    def health(self) -> Health:
        """Whether answers can be expected; a request may bring a failed engine back."""
        state = self.state
        is_broken = state is not None and bool(state.failure)
        return "failed" if is_broken and self.phase == "ready" else self.phase

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
        if model is not None:
            self.check_name(model)
        return facts

    def check_name(self, model: str) -> None:
        """See that a model is the one there is.

        Raises:
            ApiError: 404, it is another.
        """
        names = self.settings.names
        if model not in names:
            message = f"there is no model {model[:80]!r}: this server has {', '.join(names)}"
            raise ApiError(404, message, param="model", code="model_not_found")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Have shutting down wait for what is done inside."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def start(self, asked: Asked, began: float | None = None) -> Feed:
        """Begin an answer.

        Args:
            asked: for what.
            began: when its time began to run, by `time.monotonic`; now when None. Reading the
                prompt counts.

        Raises:
            Lfm2DeployError: it cannot be begun.
            ApiError: that took too long already.
        """
        now, seconds = time.monotonic(), self.settings.request_seconds
        began = now if began is None else began
        try:
            async with asyncio.timeout(None if seconds is None else began + seconds - now):
                stream = await self._begin(asked)
        except TimeoutError as error:
            raise timed_out(seconds or 0) from error
        feed = Feed(stream, self, began)
        self._feeds.add(feed)
        return feed

    async def _begin(self, asked: Asked) -> AsyncStream:
        most = asked.overrides.get("max_new_tokens") or self.settings.max_tokens
        try:
            return await self._ask(asked, most)
        except ContextOverflowError:
            if most is None:
                raise
            # Clients ask for thousands whatever the context is: an answer that comes to its end is
            # cut there, and says so. A prompt that leaves no room fails again.
            return await self._ask(asked, None)

    async def _ask(self, asked: Asked, max_new_tokens: int | None) -> AsyncStream:
        assert self._engine is not None
        overrides = {**asked.overrides, "max_new_tokens": max_new_tokens}
        return await self._engine.astart(
            asked.prompt,
            tools=asked.tools,
            tool_choice=asked.tool_choice,
            parallel_tool_calls=asked.parallel_tool_calls,
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

    def forget(self, feed: Feed) -> None:
        """An answer has ended."""
        self._feeds.discard(feed)


class Feed:
    """The events of one answer, within the time that it has."""

    def __init__(self, stream: AsyncStream, hub: Hub, began: float) -> None:
        self._stream, self._hub, self._began = stream, hub, began

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
        events = aiter(self._stream)
        while (event := await self._take(events)) is not None:
            if is_first and not isinstance(event, Finished):
                is_first = False
                self._hub.metrics.observe_first_token(time.monotonic() - self._began)
            if isinstance(event, Finished):
                self._hub.metrics.observe_answer(event.answer.usage)
                if event.answer.finish_reason == "cancelled":
                    raise shutting_down()
            yield event

    async def _take(self, events: AsyncIterator[Event]) -> Event | None:
        """The next event; None at the end."""
        seconds = self._hub.settings.request_seconds
        left = None if seconds is None else self._began + seconds - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await anext(events, None)
        except TimeoutError as error:
            raise timed_out(seconds or 0) from error
