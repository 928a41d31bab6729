"""One answer that is asked for, from the queue to its end.

Enters: a prompt's ids and how to answer, then logits. Leaves: events, in order, through the
request's `deliver`. Knows nothing of threads, queues or how logits are computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lfm2_deploy.answer_text import AnswerText
from lfm2_deploy.answers.events import (
    Answer,
    AnswerReason,
    Event,
    Part,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    Usage,
)
from lfm2_deploy.answers.parser import AnswerParser
from lfm2_deploy.constraints import Constraint
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import TokenLogprobs

# What a request's reader gets: events, or why there are no more.
Deliver = Callable[[Event | Exception], None]


@dataclass(eq=False, slots=True)
class Request:
    """What is asked for.

    Args:
        ids: the prompt.
        options: how to answer.
        deliver: takes the events; called by the thread that runs the model, so it must not wait.
        constraint: what the answer must follow.
        parser: takes reasoning and calls of tools out of the text; None leaves it as it is.
        kept: special tokens that the parser needs to see.
        choice: which of several answers to one prompt.
        cancelled: ends the answer before its next token, once set.
        asked_at: when, by `time.perf_counter`.
    """

    ids: tuple[int, ...]
    options: GenerationOptions
    deliver: Deliver
    constraint: Constraint | None = None
    parser: AnswerParser | None = None
    kept: frozenset[int] = frozenset()
    choice: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    asked_at: float = field(default_factory=time.perf_counter)


def cancel_unstarted(request: Request) -> Answer:
    """The answer to a request that was cancelled in the queue."""
    waited = time.perf_counter() - request.asked_at
    usage = Usage(len(request.ids), 0, queue_seconds=waited)
    return Answer("", "", (), "cancelled", usage, choice=request.choice)


def list_whole_calls(parser: AnswerParser) -> tuple[ToolCall, ...]:
    """The calls that were written to their end: of others, arguments may be cut or missing."""
    broken = parser.broken_calls
    return tuple(call for index, call in enumerate(parser.tool_calls) if index not in broken)


class Reply:
    """The answer to a request while it grows: text is parsed, delivered and kept.

    `token_ids` are those chosen so far.
    """

    def __init__(self, request: Request, text: AnswerText) -> None:
        self._request, self._text = request, text
        self._plain: list[str] = []
        self.token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._untold: list[TokenLogprobs] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._text.stop is not None

    def push(self, token_id: int, logprobs: TokenLogprobs | None, is_text: bool) -> None:
        """Take a token in; `is_text` is false for the one that ends a turn."""
        self.token_ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
            self._untold.append(logprobs)
        if is_text:
            self._tell(self._text.push(token_id))

    def finish(self, reason: AnswerReason, usage: Usage) -> Answer:
        """End the answer: deliver what was held back, and return the whole."""
        self._tell(self._text.flush())
        parser = self._request.parser
        if parser is not None:
            self._deliver(parser.flush())
        if self._untold:
            self._deliver([TextDelta("", choice=self._request.choice)])
        calls = () if parser is None else list_whole_calls(parser)
        asked = self._request.options.logprobs is not None
        return Answer(
            text="".join(self._plain) if parser is None else parser.text,
            reasoning="" if parser is None else parser.reasoning,
            tool_calls=calls,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=usage,
            stop=self._text.stop,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self._logprobs) if asked else None,
            choice=self._request.choice,
        )

    def _tell(self, text: str) -> None:
        if not text:
            return
        if self._request.parser is None:
            self._plain.append(text)
            self._deliver([TextDelta(text, choice=self._request.choice)])
        else:
            self._deliver(self._request.parser.push(text))

    def _deliver(self, parts: list[Part]) -> None:
        for part in parts:
            if self._untold and isinstance(part, TextDelta | ReasoningDelta):
                part = type(part)(part.text, tuple(self._untold), part.choice)
                self._untold.clear()
            self._request.deliver(part)
