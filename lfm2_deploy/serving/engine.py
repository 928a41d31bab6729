"""A model to embed in a program: thread-safe, cancellable, several requests at once.

Enters: prompts and options, from any thread or event loop. Leaves: typed events
(`lfm2_deploy.answers.events`). The model runs in a thread of its own; see `scheduler`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.api import LOADING, TRYING, load
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import ClosedError, GenerationError
from lfm2_deploy.generate import LanguageModel, Prompt
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.serving.limits import EngineLimits, EngineState, LoadProgress
from lfm2_deploy.serving.prompting import ToolChoice, Wish, prepare
from lfm2_deploy.serving.scheduler import IdleEndError, Scheduler, Totals
from lfm2_deploy.serving.streams import AsyncStream, Stream

__all__ = ["Engine", "EngineLimits", "EngineState", "LoadProgress"]

_AnyStream = TypeVar("_AnyStream", Stream, AsyncStream)
TellProgress = Callable[[LoadProgress], None]


class Engine:
    """A loaded model that any thread may use.

    Use it as a context manager, or `close` it.
    """

    def __init__(self, model: LanguageModel, limits: EngineLimits | None = None) -> None:
        """Serve a model that is loaded already; it belongs to the engine from then on.

        Raises:
            GenerationError: limits ask for unloading, which only `load` can undo.
        """
        self._limits = limits or EngineLimits()
        if self._limits.idle_seconds is not None:
            raise GenerationError("idle_seconds needs an engine that can load again: Engine.load")
        self._begin(lambda: model)
        self._start()

    def _begin(self, load_model: Callable[[], LanguageModel]) -> None:
        self._load_model = load_model
        self._lock = threading.Lock()
        self._totals = Totals()
        self._running: tuple[LanguageModel, Scheduler] | None = None
        self._closed = False

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        runtime: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        canary: str | None = None,
        limits: EngineLimits | None = None,
        progress: TellProgress | None = None,
    ) -> Engine:
        """Load a bundle.

        Args:
            bundle, runtime, device, threads, canary: as `lfm2_deploy.load` takes them.
            limits: what the engine takes on; `EngineLimits()` when None.
            progress: told how far it has come, in this thread; at a later load by itself, too.

        Raises:
            BundleError, CanaryError, RuntimeUnavailableError: as `lfm2_deploy.load`.
        """
        tell = progress or (lambda _: None)
        engine = cls.__new__(cls)
        engine._limits = limits or EngineLimits()

        def load_model() -> LanguageModel:
            model = load(
                bundle,
                runtime=runtime,
                device=device,
                threads=threads,
                canary=canary,
                progress=lambda what, done, total: tell(_name_stage(what, done, total)),
            )
            tell(LoadProgress("ready", 1, 1))
            return model

        engine._begin(load_model)
        engine._start()
        return engine

    @classmethod
    async def aload(cls, bundle: str | Path | Bundle, **options: Any) -> Engine:
        """As `load`, in another thread, where `progress` is called, too."""
        return await asyncio.to_thread(cls.load, bundle, **options)

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Stream:
        """Answer a prompt, as events.

        Args:
            prompt: text (raw continuation), OpenAI-style messages (a chat), or token ids.
            options: the model's defaults when None.
            tools: OpenAI tool objects or bare JSON schemas of functions, for a chat.
            tool_choice: "auto", "none", "required", or the name of the one to call.
            n: how many answers; with a seed, choice i has seed + i.
            template_options: further variables of the chat template.
            **overrides: any field of `GenerationOptions` or `SamplingOptions`, such as `grammar`.

        Raises:
            TemplateError, GenerationError: at once, before anything runs.
            QueueFullError: too many requests wait.
            ClosedError: the engine was closed.
        """
        asked = (tools, tool_choice, n, template_options, overrides)
        return self._submit(Stream(), prompt, options, *asked)

    def astream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> AsyncStream:
        """As `stream`, for the event loop that runs here.

        The prompt is read here, and a model that was unloaded is loaded here, which takes its
        time: `astart` does that in another thread.
        """
        asked = (tools, tool_choice, n, template_options, overrides)
        return self._submit(AsyncStream(), prompt, options, *asked)

    async def astart(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> AsyncStream:
        """As `astream`, and the event loop is never blocked."""
        stream = AsyncStream()
        asked = (tools, tool_choice, n, template_options, overrides)
        try:
            return await asyncio.to_thread(lambda: self._submit(stream, prompt, options, *asked))
        except asyncio.CancelledError:  # the thread goes on, and may submit what nobody reads
            stream.cancel()
            raise

    def generate(
        self, prompt: Prompt, options: GenerationOptions | None = None, **more: Any
    ) -> Answer:
        """Wait for the answer to a prompt; see `stream` for arguments and errors."""
        return self.stream(prompt, options, **more).answers()[0]

    async def agenerate(
        self, prompt: Prompt, options: GenerationOptions | None = None, **more: Any
    ) -> Answer:
        """As `generate`, for an event loop, which is never blocked."""
        stream = await self.astart(prompt, options, **more)
        return (await stream.answers())[0]

    @property
    def model(self) -> LanguageModel:
        """The model; loads it where it was unloaded. Its sessions are the engine's."""
        return self._ensure()[0]

    @property
    def limits(self) -> EngineLimits:
        """What it takes on."""
        return self._limits

    @property
    def state(self) -> EngineState:
        """What it does at the moment."""
        running = self._running
        loaded = running is not None and not running[1].has_ended
        counts = running[1].counts if running is not None and loaded else (0, 0)
        totals = self._totals
        return EngineState(
            loaded,
            *counts,
            totals.prompt_tokens,
            totals.reused_tokens,
            totals.completion_tokens,
            dict(totals.answers),
            totals.refused,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those there are.

        Args:
            timeout: seconds at most; None waits as long as it takes.

        Returns:
            Whether all ended in time; those that did not go on.
        """
        running = self._running
        return running is None or running[1].drain(timeout)

    def close(self) -> None:
        """Cancel what runs, and free the model; further requests are refused."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            running[1].end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        stream: _AnyStream,
        prompt: Prompt,
        options: GenerationOptions | None,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: ToolChoice,
        n: int,
        template_options: Mapping[str, Any] | None,
        overrides: Mapping[str, Any],
    ) -> _AnyStream:
        while True:
            model, scheduler = self._ensure()
            chosen = (options or model.defaults).with_overrides(**overrides)
            wish = Wish(prompt, chosen, tools, tool_choice, n, template_options or {})
            stream.begin(prepare(model, wish, stream.deliver), scheduler.wake)
            try:
                scheduler.submit(stream.requests)
            except IdleEndError:  # in the moment between; another one is started
                continue
            return stream

    def _start(self) -> tuple[LanguageModel, Scheduler]:
        model = self._load_model()
        scheduler = Scheduler(model, self._limits, self._totals, model.runtime.close)
        self._running = model, scheduler
        return self._running

    def _ensure(self) -> tuple[LanguageModel, Scheduler]:
        """The model and its thread; both are made anew after they ended for want of work."""
        with self._lock:
            if self._closed:
                raise ClosedError("the engine was closed: load the model again")
            if self._running is None or self._running[1].ended_idle:
                return self._start()
            return self._running


def _name_stage(what: str, done: int, total: int) -> LoadProgress:
    stage = {LOADING: "loading", TRYING: "checking"}.get(what, "hashing")
    return LoadProgress(stage, done, total)
