"""A model to embed in a program: thread-safe, cancellable, several requests at once.

Enters: prompts and options, from any thread or event loop. Leaves: typed events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lfm2_deploy.answers.events import Answer, Event
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.generate import LanguageModel, Prompt
from lfm2_deploy.options import GenerationOptions

ToolChoice = Literal["auto", "none", "required"] | str  # or a function's name


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading has come.

    Args:
        stage: "hashing", "loading", "checking" or "ready".
        done, total: of the stage, in its own units (bytes when hashing); total is 0 while unknown.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes on.

    Args:
        running: most answers that run at once; further ones wait.
        waiting: most answers that wait; further ones are refused (`QueueFullError`).
        kept: most conversations whose states are kept for what follows them.
        idle_seconds: unload the model after so long without a request; None keeps it. The next
            request loads it again.
    """

    running: int = 4
    waiting: int = 32
    kept: int = 4
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine does at the moment, and did so far.

    Args:
        loaded: the model is in memory.
        running, waiting: answers.
        prompt_tokens, reused_tokens, completion_tokens: since the engine was made.
        answers: finished, by finish reason.
        refused: for a full queue.
    """

    loaded: bool
    running: int
    waiting: int
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    answers: Mapping[str, int]
    refused: int


class Stream:
    """The events of one request, in order; iterate it from any thread, once.

    Use it as a context manager: leaving it cancels what still runs.
    """

    def __iter__(self) -> Iterator[Event]:
        raise NotImplementedError

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End every choice before its next token; their `Finished` events still come."""
        raise NotImplementedError


class AsyncStream:
    """As `Stream`, for an event loop: `async for`, `async with`."""

    def __aiter__(self) -> AsyncIterator[Event]:
        raise NotImplementedError

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """See `Stream.cancel`."""
        raise NotImplementedError


class Engine:
    """A loaded model that any thread may use."""

    def __init__(self, model: LanguageModel, limits: EngineLimits | None = None) -> None:
        """Serve a model that is loaded already."""
        raise NotImplementedError

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
        progress: Callable[[LoadProgress], None] | None = None,
    ) -> Engine:
        """Load a bundle; see `lfm2_deploy.load` for arguments and errors."""
        raise NotImplementedError

    @classmethod
    async def aload(cls, bundle: str | Path | Bundle, **options: Any) -> Engine:
        """As `load`, without blocking the event loop."""
        raise NotImplementedError

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
        """
        raise NotImplementedError

    def astream(
        self, prompt: Prompt, options: GenerationOptions | None = None, **more: Any
    ) -> AsyncStream:
        """As `stream`, for an event loop."""
        raise NotImplementedError

    def generate(
        self, prompt: Prompt, options: GenerationOptions | None = None, **more: Any
    ) -> Answer:
        """Answer a prompt; see `stream`."""
        raise NotImplementedError

    async def agenerate(
        self, prompt: Prompt, options: GenerationOptions | None = None, **more: Any
    ) -> Answer:
        """As `generate`, for an event loop."""
        raise NotImplementedError

    @property
    def model(self) -> LanguageModel:
        """The model; loads it where it was unloaded."""
        raise NotImplementedError

    @property
    def state(self) -> EngineState:
        """What it does at the moment."""
        raise NotImplementedError

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those there are; whether all ended in time."""
        raise NotImplementedError

    def close(self) -> None:
        """Cancel what runs, free the model."""
        raise NotImplementedError
