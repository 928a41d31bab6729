"""Items of the Responses API <-> chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.server.reading import join_content
from lfm2_deploy.server.schemas.common import JsonObject
from lfm2_deploy.server.schemas.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    MessageItem,
    ReasoningItem,
)

AnyItem = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


def read_items(given: str | Sequence[AnyItem]) -> list[JsonObject]:
    """Chat messages of an input.

    Reasoning, text and calls that follow each other are one message of the assistant's.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[JsonObject] = []
    for item in given:
        if isinstance(item, MessageItem):
            _add_message(messages, item)
        elif isinstance(item, FunctionCallItem):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            _open_turn(messages).setdefault("tool_calls", []).append(call)
        elif isinstance(item, ReasoningItem):
            text = "".join(part.text for part in item.content or item.summary)
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})
        else:
            output = join_content(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    return messages


def _add_message(messages: list[JsonObject], item: MessageItem) -> None:
    text = join_content(item.content)
    if item.role != "assistant":
        role = "system" if item.role == "developer" else item.role
        messages.append({"role": role, "content": text})
        return
    turn = _open_turn(messages, keeps_text=True)
    turn["content"] = text


def _open_turn(messages: list[JsonObject], keeps_text: bool = False) -> JsonObject:
    """The assistant's message that an item goes on with; a new one where there is none."""
    last = messages[-1] if messages else None
    if last is not None and last["role"] == "assistant":
        taken = keeps_text and (last["content"] or last.get("tool_calls"))
        if not taken:
            return last
    messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def make_message(answer: Answer, calls: Sequence[Any]) -> JsonObject:
    """The assistant's chat message that an answer is."""
    message: JsonObject = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message
