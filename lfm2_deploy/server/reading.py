"""Requests -> what the engine is asked.

Enters: the checked requests of the three APIs. Leaves: `Asked`, in the names of
`GenerationOptions`. A field left out is None, and then the model's own default holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from lfm2_deploy.server.errors import refuse
from lfm2_deploy.server.hub import Asked
from lfm2_deploy.server.schemas.chat import (
    ChatRequest,
    GrammarFormat,
    JsonObjectFormat,
    Message,
    Part,
    SchemaFormat,
)
from lfm2_deploy.server.schemas.common import Choosing, JsonObject
from lfm2_deploy.server.schemas.completions import CompletionRequest
from lfm2_deploy.server.schemas.responses import ResponseRequest, ResponseSchemaFormat
from lfm2_deploy.server.settings import Settings

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_PASSED = ("temperature", "min_p", "ignore_eos", "skip_special_tokens", *_PENALTIES)
# Variables that are not the caller's to set: what they hold is what the request says.
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "chat_template")
_SEEDS = 2**63


def read_chat(body: ChatRequest, settings: Settings) -> Asked:
    """What a chat asks for.

    Raises:
        ApiError: it asks for more than this server gives.
    """
    limit = _choose_limit(body.max_completion_tokens, body.max_tokens, settings)
    overrides = read_choosing(body, _read_format(body.response_format))
    overrides["max_new_tokens"] = limit
    if body.logprobs:
        overrides["logprobs"] = body.top_logprobs or 0
    return Asked(
        prompt=[read_message(message) for message in body.messages],
        overrides=overrides,
        tools=_dump_tools(body.tools),
        tool_choice=_read_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        n=body.n or 1,
        template_options=_read_variables(body.chat_template_kwargs),
    )


def read_completion(body: CompletionRequest, settings: Settings) -> list[Asked]:
    """What a text completion asks for: one request a prompt.

    Raises:
        ApiError: it asks for more than this server gives.
    """
    overrides = read_choosing(body, _read_format(body.response_format))
    overrides["max_new_tokens"] = _choose_limit(body.max_tokens, None, settings)
    overrides["logprobs"] = body.logprobs
    return [Asked(prompt, overrides, n=body.n or 1) for prompt in body.prompts]


def read_response(
    body: ResponseRequest, messages: Sequence[JsonObject], wants_logprobs: bool, settings: Settings
) -> Asked:
    """What a call of the Responses API asks for.

    Args:
        body: the request.
        messages: the whole conversation, as chat messages.
        wants_logprobs: it asks to include them.
        settings: the server's.

    Raises:
        ApiError: it asks for more than this server gives.
    """
    form = body.text.format if body.text else None
    overrides = read_choosing(body, _read_format(form))
    overrides["max_new_tokens"] = _choose_limit(body.max_output_tokens, None, settings)
    if wants_logprobs:
        overrides["logprobs"] = body.top_logprobs or 0
    tools = tuple(
        {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}
        for tool in body.tools or ()
    )
    return Asked(
        prompt=list(messages),
        overrides=overrides,
        tools=tools or None,
        tool_choice=_read_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=_read_variables(body.chat_template_kwargs),
    )


def read_message(message: Message) -> JsonObject:
    """A message as templates know it: plain text, and no fields that are empty."""
    # OpenAI's newer name for the same; templates know the older one.
    role = "system" if message.role == "developer" else message.role
    read: JsonObject = {"role": role, "content": join_content(message.content)}
    if message.tool_calls:
        read["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    reasoning = message.reasoning_content or message.reasoning
    if reasoning and message.role == "assistant":
        read["reasoning_content"] = reasoning
    for name in ("name", "tool_call_id"):
        if getattr(message, name):
            read[name] = getattr(message, name)
    return read


def join_content(content: str | Sequence[Part] | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal or "" for part in content)


def read_choosing(body: Choosing, form: Any) -> dict[str, Any]:
    """Overrides for `GenerationOptions`, without lengths.

    Args:
        body: any request.
        form: the grammar that its response format asks for, or None.

    Raises:
        ApiError: it asks for two grammars, or for tokens that are none.
    """
    overrides: dict[str, Any] = {name: getattr(body, name) for name in _PASSED}
    # The smallest that keeps a token, as 0 does for OpenAI.
    overrides["top_p"] = 1e-9 if body.top_p == 0 else body.top_p
    overrides["top_k"] = 0 if body.top_k == -1 else body.top_k
    overrides["seed"] = None if body.seed is None else body.seed % _SEEDS
    overrides["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop or None
    overrides["stop_token_ids"] = body.stop_token_ids or None
    overrides["logit_bias"] = _read_bias(body.logit_bias)
    overrides["grammar"] = _choose_grammar(body, form)
    return {name: value for name, value in overrides.items() if value is not None}


def _read_bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if not given:
        return None
    for token in given:
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise refuse(f"logit_bias: {token[:40]!r} is no token id", "logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _choose_grammar(body: Choosing, form: Any) -> Any:
    other = body.structured_outputs
    named = {
        "guided_json": _make("json_schema", body.guided_json),
        "guided_regex": _make("regex", body.guided_regex),
        "guided_grammar": _make("lark", body.guided_grammar),
        "guided_choice": _make_choice(body.guided_choice),
        "response_format": form,
    }
    if other is not None:
        named |= {
            "structured_outputs.json": _make("json_schema", other.json_),
            "structured_outputs.json_object": _make("json", "" if other.json_object else None),
            "structured_outputs.regex": _make("regex", other.regex),
            "structured_outputs.choice": _make_choice(other.choice),
            "structured_outputs.grammar": _make("lark", other.grammar),
        }
    given = {name: grammar for name, grammar in named.items() if grammar is not None}
    if len(given) > 1:
        raise refuse(f"{' and '.join(given)} contradict each other: choose one", [*given][1])
    return next(iter(given.values()), None)


def _read_format(form: BaseModel | None) -> Any:
    if isinstance(form, JsonObjectFormat):
        return _make("json", "")
    if isinstance(form, SchemaFormat):
        return _make("json_schema", form.json_schema.schema_)
    if isinstance(form, ResponseSchemaFormat):
        return _make("json_schema", form.schema_)
    if isinstance(form, GrammarFormat):
        return _make(form.grammar.syntax, form.grammar.definition)
    return None


def _make_choice(texts: Sequence[str] | None) -> Any:
    return None if texts is None else _make("regex", "|".join(map(re.escape, texts)))


def _make(kind: str, source: Any) -> Any:
    """The grammar that a constructor of `Grammar` makes of a source; None of None."""
    if source is None:
        return None
    from lfm2_deploy.grammar import Grammar

    return Grammar.json() if kind == "json" else getattr(Grammar, kind)(source)


def _choose_limit(limit: int | None, older: int | None, settings: Settings) -> int | None:
    wanted, most = limit or older, settings.max_tokens
    if wanted is not None and most is not None and wanted > most:
        raise refuse(
            f"{wanted:,} tokens are asked for, and this server gives {most:,} at most",
            "max_completion_tokens" if limit else "max_tokens",
        )
    return wanted


def _read_choice(choice: str | BaseModel | None) -> str | JsonObject:
    # As an object, since a function may be called "none".
    return choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto"


def _dump_tools(tools: Sequence[BaseModel] | None) -> tuple[JsonObject, ...] | None:
    return tuple(tool.model_dump(exclude_none=True) for tool in tools) if tools else None


def _read_variables(given: JsonObject | None) -> JsonObject:
    for name in _OWN_VARIABLES:
        if name in (given or {}):
            raise refuse(f"chat_template_kwargs may not set '{name}'", "chat_template_kwargs")
    return given or {}
