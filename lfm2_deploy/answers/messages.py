"""Messages as OpenAI's clients send them -> what chat templates of LFM2 take.

Enters: messages of the Chat Completions API; content parts of the Responses API, too.
Leaves: messages whose content is text and whose calls have objects for arguments. All of
LFM2's templates in use take them, also those that know no `tool_calls`; see `knows_calls`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lfm2_deploy.answers.written_calls import write_calls
from lfm2_deploy.errors import TemplateError

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
# What is made something of here, or means nothing to a template.
_HANDLED = ("role", "content", "tool_calls", "function_call", "refusal", "audio", "annotations")


def prepare_messages(
    messages: Sequence[Mapping[str, Any]], *, knows_calls: bool = True
) -> list[dict[str, Any]]:
    """Bring messages into the one form that templates take.

    System messages, wherever they stand, are joined in one at the beginning: templates look for
    one there only. Fields that are not known here are left as they are.

    Args:
        messages: see above; they are not changed.
        knows_calls: the template writes `tool_calls` itself. Otherwise they are written into
            the content, as the model writes them: such a template would leave them out.

    Raises:
        TemplateError: a message has the wrong shape, or holds what is no text.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(
            f"messages is a {type(messages).__name__}, expected a list of "
            '{"role": ..., "content": ...} objects'
        )
    prepared = [
        _prepare(f"message {index}", message, knows_calls) for index, message in enumerate(messages)
    ]
    system = "\n\n".join(
        message["content"]
        for message in prepared
        if message["role"] == "system" and message["content"]
    )
    others = [message for message in prepared if message["role"] != "system"]
    return [{"role": "system", "content": system}, *others] if system else others


def _prepare(place: str, message: Mapping[str, Any], knows_calls: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(
            f"{place} is a {type(message).__name__}, expected an object with 'role' and 'content'"
        )
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise TemplateError(
            f"{place} has the role {message.get('role')!r}, expected one of {', '.join(_ROLES)}"
        )
    if message.get("audio") is not None:
        _refuse_part(place, "audio")
    content = _text_of(place, message.get("content"))
    if content is None:
        if role == "user":
            raise TemplateError(f"{place} (role 'user') has no 'content': give its text")
        content = _text_of(place, message.get("refusal")) or ""
    further = {key: value for key, value in message.items() if key not in _HANDLED}
    prepared = {
        "role": role,
        "content": content,
        **{key: value for key, value in further.items() if value is not None},
    }
    calls = _calls_of(place, message) if role == "assistant" else []
    if calls and knows_calls:
        prepared["tool_calls"] = calls
    elif calls:
        prepared["content"] += write_calls(
            (call["function"]["name"], call["function"]["arguments"]) for call in calls
        )
    return prepared


def _text_of(place: str, content: Any) -> str | None:
    """A content as text; None where there is none."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TemplateError(
            f"{place}: content is a {type(content).__name__}, expected text or a list of parts"
        )
    return "".join(_text_of_part(place, part) for part in content)


def _text_of_part(place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    key = _TEXT_PARTS.get(str(kind))
    if key is None:
        _refuse_part(place, str(kind) if kind else f"part of type {type(part).__name__}")
    text = part.get(key)
    if not isinstance(text, str):
        raise TemplateError(f"{place}: a part of type '{kind}' has no '{key}': give it as a string")
    return text


def _refuse_part(place: str, kind: str) -> NoReturn:
    raise TemplateError(
        f"{place} holds '{kind}', and this model reads text only: send parts of type "
        + ", ".join(f"'{name}'" for name in _TEXT_PARTS)
    )


def _calls_of(place: str, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if calls is None:
        single = message.get("function_call")  # what tool_calls was once
        calls = [] if single is None else [{"function": single}]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise TemplateError(f"{place}: tool_calls is a {type(calls).__name__}, expected a list")
    return [_prepare_call(f"{place}: tool call {index}", call) for index, call in enumerate(calls)]


def _prepare_call(place: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise TemplateError(
            f'{place} names no function: expected {{"function": {{"name": ..., "arguments": ...}}}}'
        )
    arguments = _read_arguments(f"{place} ('{name}')", function.get("arguments"))
    prepared = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call["id"], **prepared} if call.get("id") is not None else prepared


def _read_arguments(place: str, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise TemplateError(
                f"{place} has arguments that are no JSON ({' '.join(str(error).split())}): "
                "send back what the model wrote"
            ) from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise TemplateError(
            f"{place} has arguments of type {type(arguments).__name__}, expected a JSON object"
        )
    return dict(arguments)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
