"""Events -> the Responses API's named events, and the finished response.

Enters: the events of `answers.events`, of one answer. Leaves: pieces for a stream in the API's
order: an item is added, its parts grow, it is done. The whole response is what the last one holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator
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
from lfm2_deploy.server.chat_answer import new_id
from lfm2_deploy.server.content_tokens import ContentTokens
from lfm2_deploy.server.errors import ApiError
from lfm2_deploy.server.schemas.common import JsonObject
from lfm2_deploy.server.sse import Piece
from lfm2_deploy.server.usage import describe_tokens, describe_usage
from lfm2_deploy.tokenizer import Tokenizer

# An item's kind -> the part that it has, and the events that tell of its text.
_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


class ResponseWriter:
    """Builds one response while its events come."""

    def __init__(
        self,
        response: JsonObject,
        tokenizer: Tokenizer,
        *,
        tells_logprobs: bool = False,
        several_calls: bool = True,
    ) -> None:
        """Begin.

        Args:
            response: with everything but output and usage.
            tokenizer: the model's.
            tells_logprobs: they were asked for.
            several_calls: the model may call several functions; where not, the first is told.
        """
        self.response = response
        self.answer: Answer | None = None
        self._tokenizer = tokenizer
        self._tokens = ContentTokens(tokenizer)
        self._tells_logprobs = tells_logprobs
        self._several_calls = several_calls
        self._number = 0
        self._open: JsonObject | None = None

    async def write(self, events: AsyncIterable[Event]) -> AsyncIterator[Piece]:
        """Every piece of the stream."""
        yield self._tell("response.created", response=self._copy())
        yield self._tell("response.in_progress", response=self._copy())
        async for event in events:
            for piece in self._take(event):
                yield piece
        for piece in self._close():
            yield piece
        status = self.response["status"]
        yield self._tell(f"response.{status}", response=self._copy())

    def explain(self, error: ApiError) -> Piece:
        """The last piece of a stream that failed."""
        self.response["status"] = "failed"
        code = error.code or "server_error"
        self.response["error"] = {"code": code, "message": error.message}
        return self._tell("response.failed", response=self._copy())

    def _take(self, event: Event) -> Iterator[Piece]:
        if isinstance(event, TextDelta):
            if event.text:
                yield from self._write_text("message", event)
        elif isinstance(event, ReasoningDelta):
            if event.text:
                yield from self._write_text("reasoning", event)
        elif isinstance(event, Finished):
            self._finish(event.answer)
        elif not event.index or self._several_calls:
            yield from self._write_call(event)

    def _write_text(self, kind: str, event: TextDelta | ReasoningDelta) -> Iterator[Piece]:
        part, name = _PARTS[kind]
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            yield from self._begin(_new_item(kind))
            assert self._open is not None
            self._open["content"].append(_new_part(part))
            yield self._tell_part("response.content_part.added", part=_new_part(part))
        assert self._open is not None
        content = self._open["content"][0]
        content["text"] += event.text
        more: JsonObject = {}
        if kind == "message":
            tokens = self._tokens.push(event.text, event.logprobs)
            told = describe_tokens(tokens, self._tokenizer) if self._tells_logprobs else []
            content["logprobs"] += told
            more = {"logprobs": told}
        yield self._tell_part(f"{name}.delta", delta=event.text, **more)

    def _write_call(self, event: ToolCallStarted | ToolCallArguments) -> Iterator[Piece]:
        if isinstance(event, ToolCallStarted):
            yield from self._close()
            item = _new_item("function_call")
            yield from self._begin({**item, "call_id": event.id, "name": event.name})
            return
        assert self._open is not None
        self._open["arguments"] += event.text
        yield self._tell_item("response.function_call_arguments.delta", delta=event.text)

    def _begin(self, item: JsonObject) -> Iterator[Piece]:
        self._open = item
        self.response["output"].append(item)
        told = {**item, "content": []} if "content" in item else dict(item)
        yield self._tell("response.output_item.added", output_index=self._place, item=told)

    def _close(self) -> Iterator[Piece]:
        """The pieces by which the item that is open ends."""
        item = self._open
        if item is None:
            return
        item["status"] = "incomplete" if self._is_cut(item) else "completed"
        if item["type"] == "function_call":
            # Of a call that was cut nobody is told that its arguments are done.
            if item["status"] == "completed":
                done = {"name": item["name"], "arguments": item["arguments"]}
                yield self._tell_item("response.function_call_arguments.done", **done)
        else:
            name = _PARTS[item["type"]][1]
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            yield self._tell_part(f"{name}.done", text=part["text"], **more)
            yield self._tell_part("response.content_part.done", part=dict(part))
        yield self._tell("response.output_item.done", output_index=self._place, item=dict(item))
        self._open = None

    def _is_cut(self, item: JsonObject) -> bool:
        """Whether the answer, if it has ended, ended within this item."""
        answer = self.answer
        if answer is None:
            return False
        if item["type"] == "function_call":
            return answer.cut_call is not None and answer.cut_call.id == item["call_id"]
        return answer.finish_reason == "length"

    def _finish(self, answer: Answer) -> None:
        self.answer = answer
        reason = _explain_cut(answer)
        self.response["status"] = "completed" if reason is None else "incomplete"
        if reason is not None:
            self.response["incomplete_details"] = {"reason": reason}
        self.response["usage"] = _describe_usage(answer, self._tokenizer)

    @property
    def _place(self) -> int:
        return len(self.response["output"]) - 1

    def _tell(self, name: str, /, **more: Any) -> Piece:
        piece = {"type": name, "sequence_number": self._number, **more}
        self._number += 1
        return name, piece

    def _tell_item(self, name: str, /, **more: Any) -> Piece:
        assert self._open is not None
        return self._tell(name, item_id=self._open["id"], output_index=self._place, **more)

    def _tell_part(self, name: str, /, **more: Any) -> Piece:
        return self._tell_item(name, content_index=0, **more)

    def _copy(self) -> JsonObject:
        # What was told must not change where it waits to be sent.
        return {**self.response, "output": list(self.response["output"])}


def _explain_cut(answer: Answer) -> str | None:
    """Why an answer is incomplete; None where it is not."""
    if answer.finish_reason == "length":
        return "max_output_tokens"
    # A stop string within text is an end like any other; within a call it is not.
    return "stop_sequence" if answer.cut_call is not None else None


def _new_item(kind: str) -> JsonObject:
    item: JsonObject = {"id": "", "type": kind, "status": "in_progress"}
    if kind == "message":
        return {**item, "id": new_id("msg_"), "role": "assistant", "content": []}
    if kind == "reasoning":
        return {**item, "id": new_id("rs_"), "summary": [], "content": []}
    return {**item, "id": new_id("fc_"), "arguments": ""}


def _new_part(kind: str) -> JsonObject:
    part: JsonObject = {"type": kind, "text": ""}
    return {**part, "annotations": [], "logprobs": []} if kind == "output_text" else part


def _describe_usage(answer: Answer, tokenizer: Tokenizer) -> JsonObject:
    usage = describe_usage([answer], tokenizer)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
        "x_lfm2": usage["x_lfm2"],
    }
