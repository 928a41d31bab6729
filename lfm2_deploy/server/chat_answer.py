"""Events -> a chat completion, whole or in chunks.

Enters: the events of `answers.events`. Leaves: JSON objects in OpenAI's shape, reasoning under
`reasoning_content`. Both ways go through the same events, so joined chunks are the whole.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.answers.events import (
    Answer,
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
)
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.server.content_tokens import ContentTokens
from lfm2_deploy.server.response_items import make_message
from lfm2_deploy.server.sse import Piece
from lfm2_deploy.server.usage import describe_tokens, describe_usage
from lfm2_deploy.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Frame:
    """What every chunk of one reply repeats, and how events are told.

    Args:
        id: of the reply.
        model: its name.
        created: seconds since 1970.
        tokenizer: the model's.
        logprobs: they were asked for.
        several_calls: the model may call several tools at once; where not, the first is told.
        includes_usage: a last chunk tells usage.
    """

    id: str
    model: str
    created: int
    tokenizer: Tokenizer
    logprobs: bool = False
    several_calls: bool = True
    includes_usage: bool = False

    def wrap(self, kind: str, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        """An object with what all have in common."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": list(choices),
            **more,
        }

    def describe(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        """The `logprobs` of a choice."""
        if not self.logprobs:
            return None
        return {"content": describe_tokens(logprobs, self.tokenizer), "refusal": None}

    def track_tokens(self) -> defaultdict[int, ContentTokens]:
        """For each choice, what tells which tokens are its text's."""
        return defaultdict(lambda: ContentTokens(self.tokenizer))


FINGERPRINT = "lfm2-deploy"


def new_id(prefix: str) -> str:
    """An id that no other reply has."""
    return f"{prefix}{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


async def collect_chat(
    events: AsyncIterable[Event], frame: Frame
) -> tuple[dict[str, Any], list[Answer]]:
    """The whole reply, and the answers in it."""
    answers: dict[int, Answer] = {}
    logprobs: dict[int, list[TokenLogprobs]] = {}
    tokens = frame.track_tokens()
    async for event in events:
        if isinstance(event, TextDelta):
            told = tokens[event.choice].push(event.text, event.logprobs)
            logprobs.setdefault(event.choice, []).extend(told)
        if isinstance(event, Finished):
            answers[event.choice] = event.answer
    ordered = [answers[choice] for choice in sorted(answers)]
    choices = [
        {
            "index": answer.choice,
            "message": _describe_message(answer, frame),
            "logprobs": frame.describe(logprobs.get(answer.choice, ())),
            "finish_reason": answer.finish_reason,
        }
        for answer in ordered
    ]
    usage = describe_usage(ordered, frame.tokenizer)
    return frame.wrap("chat.completion", choices, usage=usage), ordered


def _describe_message(answer: Answer, frame: Frame) -> dict[str, Any]:
    # As OpenAI has it, one that was cut is told as far as it goes; `finish_reason` says so.
    told = (*answer.tool_calls, *((answer.cut_call,) if answer.cut_call else ()))
    calls = told if frame.several_calls else told[:1]
    content = None if calls and not answer.text else answer.text
    return {**make_message(answer, calls), "content": content, "refusal": None}


async def stream_chat(
    events: AsyncIterable[Event], frame: Frame, n: int, answers: list[Answer]
) -> AsyncIterator[Piece]:
    """The reply in chunks.

    Args:
        events: of the engine.
        frame: see there.
        n: how many answers.
        answers: takes in those that end.
    """
    for choice in range(n):
        yield _chunk(frame, choice, {"role": "assistant", "content": ""})
    tokens = frame.track_tokens()
    async for event in events:
        if isinstance(event, Finished):
            answers.append(event.answer)
            yield _chunk(frame, event.choice, {}, finish=event.answer.finish_reason)
            continue
        delta = _describe_delta(event, frame)
        if delta is not None:
            told = []
            if isinstance(event, TextDelta):
                told = tokens[event.choice].push(event.text, event.logprobs)
            yield _chunk(frame, event.choice, delta, told)
    if frame.includes_usage:
        usage = describe_usage(sorted(answers, key=lambda a: a.choice), frame.tokenizer)
        yield "", frame.wrap("chat.completion.chunk", [], usage=usage)


def _describe_delta(event: Event, frame: Frame) -> dict[str, Any] | None:
    """What an event adds to a message; None for nothing."""
    if isinstance(event, TextDelta):
        return {"content": event.text} if event.text else None
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text} if event.text else None
    if not isinstance(event, ToolCallStarted | ToolCallArguments):
        return None
    if event.index and not frame.several_calls:
        return None
    if isinstance(event, ToolCallStarted):
        function = {"name": event.name, "arguments": ""}
        call = {"index": event.index, "id": event.id, "type": "function", "function": function}
    else:
        call = {"index": event.index, "function": {"arguments": event.text}}
    return {"tool_calls": [call]}


def _chunk(
    frame: Frame,
    choice: int,
    delta: dict[str, Any],
    logprobs: Sequence[TokenLogprobs] = (),
    finish: str | None = None,
) -> Piece:
    told = frame.describe(logprobs) if logprobs else None
    entry = {"index": choice, "delta": delta, "logprobs": told, "finish_reason": finish}
    more = {"usage": None} if frame.includes_usage else {}
    return "", frame.wrap("chat.completion.chunk", [entry], **more)
