"""Events -> a text completion, whole or in chunks; see `chat_answer`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lfm2_deploy.answers.events import Answer, Event, Finished, ReasoningDelta, TextDelta
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.server.chat_answer import Frame
from lfm2_deploy.server.content_tokens import ContentTokens
from lfm2_deploy.server.sse import Piece
from lfm2_deploy.server.usage import bound, describe_usage, join_usage
from lfm2_deploy.tokenizer import Tokenizer

_KIND = "text_completion"


@dataclass(slots=True)
class _Text:
    """One answer while it grows."""

    tokens: ContentTokens
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offset: int = 0
    answer: Answer | None = None


async def collect_texts(
    feeds: Sequence[AsyncIterable[Event]], frame: Frame, echoes: Sequence[str], n: int
) -> tuple[dict[str, Any], list[Answer]]:
    """The whole reply, and the answers in it.

    Args:
        feeds: one a prompt.
        frame: see there.
        echoes: what each prompt's answers begin with.
        n: answers of each prompt.
    """
    parts = await asyncio.gather(*(_collect(feed, frame.tokenizer) for feed in feeds))
    choices, usages, answers = [], [], []
    for place, (part, echo) in enumerate(zip(parts, echoes, strict=True)):
        ended = [text.answer for text in part.values() if text.answer is not None]
        for choice, text in sorted(part.items()):
            assert text.answer is not None
            told = _describe(text.logprobs, frame.tokenizer, 0) if frame.logprobs else None
            choices.append(
                _choice(place * n + choice, echo + "".join(text.pieces), told, _reason(text.answer))
            )
        usages.append(describe_usage(ended, frame.tokenizer))
        answers += ended
    return frame.wrap(_KIND, choices, usage=join_usage(usages)), answers


async def _collect(events: AsyncIterable[Event], tokenizer: Tokenizer) -> dict[int, _Text]:
    texts: dict[int, _Text] = defaultdict(lambda: _Text(ContentTokens(tokenizer)))
    async for event in events:
        text = texts[event.choice]
        if isinstance(event, TextDelta | ReasoningDelta):
            text.pieces.append(event.text)
            text.logprobs.extend(text.tokens.push(event.text, event.logprobs))
        elif isinstance(event, Finished):
            text.answer = event.answer
    return texts


async def stream_texts(
    feeds: Sequence[AsyncIterable[Event]],
    frame: Frame,
    echoes: Sequence[str],
    n: int,
    answers: list[Answer],
) -> AsyncIterator[Piece]:
    """The reply in chunks; see `collect_texts`; `answers` takes in those that end."""
    more: dict[str, Any] = {"usage": None} if frame.includes_usage else {}
    for index in range(len(feeds) * n if any(echoes) else 0):
        yield "", frame.wrap(_KIND, [_choice(index, echoes[index // n], None, None)], **more)
    ended: dict[int, list[Answer]] = {}
    offsets: dict[int, int] = {}
    tokens = frame.track_tokens()
    async for place, event in _merge(feeds):
        index = place * n + event.choice
        if isinstance(event, Finished):
            ended.setdefault(place, []).append(event.answer)
            answers.append(event.answer)
            yield "", frame.wrap(_KIND, [_choice(index, "", None, _reason(event.answer))], **more)
        elif isinstance(event, TextDelta | ReasoningDelta) and event.text:
            begin = offsets.get(index, 0)
            found = tokens[index].push(event.text, event.logprobs)
            told = _describe(found, frame.tokenizer, begin) if frame.logprobs else None
            offsets[index] = begin + len(event.text)
            yield "", frame.wrap(_KIND, [_choice(index, event.text, told, None)], **more)
    if frame.includes_usage:
        usages = [describe_usage(ended[place], frame.tokenizer) for place in sorted(ended)]
        yield "", frame.wrap(_KIND, [], usage=join_usage(usages))


async def _merge(feeds: Sequence[AsyncIterable[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Events of several prompts as they come, each with its prompt's place."""
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

    async def pour(place: int, feed: AsyncIterable[Event]) -> None:
        try:
            async for event in feed:
                queue.put_nowait((place, event))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pour(place, feed)) for place, feed in enumerate(feeds)]
    left = len(tasks)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


def _choice(index: int, text: str, told: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}


def _reason(answer: Answer) -> str:
    return "length" if answer.finish_reason == "length" else "stop"


def _describe(
    logprobs: Sequence[TokenLogprobs], tokenizer: Tokenizer, offset: int
) -> dict[str, Any]:
    """Tokens in the shape of a completion's `logprobs`."""
    told: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for entry in logprobs:
        text = tokenizer.token_text(entry.token_id)
        told["tokens"].append(text)
        told["token_logprobs"].append(bound(entry.logprob))
        told["top_logprobs"].append(
            {tokenizer.token_text(token): bound(value) for token, value in entry.top}
        )
        told["text_offset"].append(offset)
        offset += len(text)
    return told
