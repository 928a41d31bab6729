"""A model to embed in a program: thread-safe, cancellable, several requests at once.

Enters: prompts and options, from any thread or event loop. Leaves: typed events
(`lfm2_deploy.answers.events`). The model runs in a thread of its own; see `scheduler`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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

    _scheduler: Scheduler | None

    def __init__(self, model: LanguageModel, limits: EngineLimits | None = None) -> None:
        """Serve a model that is loaded already; it belongs to the engine from then on.

        Raises:
            GenerationError: limits ask for unloading, which only `load` can undo.
        """
        self._limits = limits or EngineLimits()
        if self._limits.idle_seconds is not None:
            raise GenerationError("idle_seconds needs an engine that can load again: Engine.load")
        self._begin(_refuse_to_load)
        self._scheduler = Scheduler(model, self._limits, self._totals)

    def _begin(self, load_model: Callable[[], LanguageModel]) -> None:
        self._load_model = load_model
        # A progress callback may close the engine that is loading.
        self._lock = threading.RLock()
        self._totals = Totals()
        self._scheduler = None
        self._closed = self._draining = False

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
        loading = asyncio.ensure_future(asyncio.to_thread(cls.load, bundle, **options))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:  # the thread goes on, and would leave an engine to nobody
            loading.add_done_callback(_close_unwanted)
            raise

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Stream:
        """Answer a prompt, as events.

        Args:
            prompt: text (raw continuation), OpenAI-style messages (a chat), or token ids.
            options: the model's defaults when None.
            tools: OpenAI tool objects or bare JSON schemas of functions, for a chat.
            tool_choice: "auto", "none", "required", or the name of the one to call. The last two
                force a call, by a grammar (llguidance).
            parallel_tool_calls: "required" may be answered by several calls at once.
            n: how many answers; with a seed, choice i has seed + i.
            template_options: further variables of the chat template.
            **overrides: any field of `GenerationOptions` or `SamplingOptions`, such as `grammar`.

        Raises:
            TemplateError, GenerationError: at once, before anything runs.
            QueueFullError: too many requests wait.
            ClosedError: the engine was closed.
        """
        asked = (tools, tool_choice, parallel_tool_calls, n, template_options)
        return self._submit(Stream(), prompt, options, overrides, n, *asked)

    def astream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> AsyncStream:
        """As `stream`, for the event loop that runs here.

        The prompt is read here, and a model that was unloaded is loaded here, which takes its
        time: `astart` does that in another thread.
        """
        asked = (tools, tool_choice, parallel_tool_calls, n, template_options)
        return self._submit(AsyncStream(), prompt, options, overrides, n, *asked)

    async def astart(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        n: int = 1,
        template_options: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> AsyncStream:
        """As `astream`, and the event loop is never blocked."""
        stream = AsyncStream()
        asked = (tools, tool_choice, parallel_tool_calls, n, template_options)
        submit = partial(self._submit, stream, prompt, options, overrides, n, *asked)
        try:
            return await asyncio.to_thread(submit)
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
        scheduler = self._scheduler
        loaded = scheduler is not None and not scheduler.has_ended
        counts = scheduler.counts if scheduler is not None and loaded else (0, 0)
        totals = self._totals
        return EngineState(
            loaded,
            *counts,
            totals.prompt_tokens,
            totals.reused_tokens,
            totals.completion_tokens,
            dict(totals.answers),
            totals.refused,
            "" if scheduler is None else scheduler.failure,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, for good, and wait for those there are.

        Args:
            timeout: seconds at most; None waits as long as it takes.

        Returns:
            Whether all ended in time; those that did not go on.
        """
        self._draining = True
        scheduler = self._scheduler
        return scheduler is None or scheduler.drain(timeout)

    def close(self) -> None:
        """Cancel what runs, and free the model; further requests are refused."""
        with self._lock:
            self._closed = True
            scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _submit(
        self,
        stream: _AnyStream,
        prompt: Prompt,
        options: GenerationOptions | None,
        overrides: Mapping[str, Any],
        count: int,
        *asked: Any,
    ) -> _AnyStream:
        while True:
            model, scheduler = self._ensure()
            scheduler.check_room(count)
            chosen = (options or model.defaults).with_overrides(**overrides)
            wish = Wish(prompt, chosen, *asked)
            stream.begin(prepare(model, wish, stream.deliver), scheduler.wake)
            try:
                scheduler.submit(stream.requests)
            except IdleEndError:  # in the moment between; another one is started
                continue
            return stream

    def _start(self) -> Scheduler:
        model = self._load_model()
        if self._closed:
            model.runtime.close()
            raise ClosedError("the engine was closed while it was loading")
        self._scheduler = Scheduler(model, self._limits, self._totals)
        return self._scheduler

    def _ensure(self) -> tuple[LanguageModel, Scheduler]:
        """The model and its thread; both are made anew after they ended for want of work."""
        with self._lock:
            if self._closed:
                raise ClosedError("the engine was closed: load the model again")
            if self._draining:
                raise ClosedError("the engine is shutting down and takes no more requests")
            scheduler = self._scheduler
            if scheduler is None or scheduler.may_be_replaced:
                scheduler = self._start()
            model = scheduler.model
        if model is None:  # it ended in this moment
            return self._ensure()
        return model, scheduler


def _refuse_to_load() -> LanguageModel:
    raise ClosedError("this engine was given its model, and cannot load it again")


def _close_unwanted(loading: asyncio.Future[Engine]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()


def _name_stage(what: str, done: int, total: int) -> LoadProgress:
    stage = {LOADING: "loading", TRYING: "checking"}.get(what, "hashing")
    return LoadProgress(stage, done, total)
