"""/v1/chat/completions: what is taken and given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lfm2_deploy.server.schemas.common import (
    FIRST_FAULT,
    Choosing,
    JsonObject,
    JsonSchemaFormat,
    Request,
    Schema,
    StreamOptions,
    Text,
    Usage,
)
from lfm2_deploy.server.settings import MOST_CHOICES, MOST_LOGPROBS, MOST_MESSAGES

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
OWN_TEMPLATE = "the model's own is used; 'chat_template_kwargs' sets its options"
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class Part(Schema):
    """A piece of a message's content; this model takes text."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_text(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind not in _TEXT_PARTS:
            raise ValueError(
                f"content of type '{kind[:40]}' is not supported: the model reads text"
            )
        return given

    @model_validator(mode="after")
    def _check(self) -> Part:
        if self.text is None and (self.type != "refusal" or self.refusal is None):
            raise ValueError(f"content of type '{self.type}' needs a text")
        return self


Content = str | Annotated[list[Part], FIRST_FAULT, Field(max_length=MOST_MESSAGES)]


class FunctionCall(Schema):
    """A call that the model made."""

    name: Text
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _require_object(cls, value: str) -> str:
        try:
            parsed = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError("arguments is not JSON") from error
        if not isinstance(parsed, dict):
            raise ValueError("arguments is not a JSON object")
        return value or "{}"


class ToolCall(Schema):
    """A call of a tool that the model made."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Request):
    """One message of a conversation."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "audio": "the model reads text",
        "function_call": "use 'tool_calls'",
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], FIRST_FAULT, Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a message of role '{self.role}' needs a content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a message of role '{self.role}' has no tool_calls")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        return self


class FunctionTool(Schema):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Schema):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Schema):
    """Which function."""

    name: FunctionName


class NamedTool(Schema):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedList(Schema):
    """Which tools may be called, or one of them must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FIRST_FAULT, Field(min_length=1, max_length=128)]


class AllowedTools(Schema):
    """A choice among a few of the tools, while the prompt tells of those in any case."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedList


class TextFormat(Schema):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Schema):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Schema):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


class GrammarSource(Schema):
    """A grammar."""

    syntax: Literal["lark", "regex"]
    definition: Text


class GrammarFormat(Schema):
    """An extension: text that follows a grammar."""

    type: Literal["grammar"]
    grammar: GrammarSource


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | SchemaFormat | GrammarFormat, Field(discriminator="type")
]


class ChatRequest(Choosing):
    """A conversation to go on with."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "audio": "the model writes text",
        "best_of": "use 'n'",
        "chat_template": OWN_TEMPLATE,
        "continue_final_message": "use /v1/completions to go on with a text",
        "function_call": "use 'tool_choice'",
        "functions": "use 'tools'",
        "use_beam_search": "use 'n'",
        "web_search_options": "there is no search",
    }

    messages: Annotated[list[Message], FIRST_FAULT, Field(min_length=1, max_length=MOST_MESSAGES)]
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], FIRST_FAULT] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], FIRST_FAULT, Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: JsonObject | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        check_tool_choice(
            self.tool_choice if isinstance(self.tool_choice, str) else None,
            [tool.function.name for tool in self.tools or ()],
            self.named_tools,
        )
        return self

    @property
    def named_tools(self) -> list[str]:
        """Names in `tool_choice`."""
        if isinstance(self.tool_choice, NamedTool):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedTools):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return []


def check_tool_choice(choice: str | None, names: Sequence[str], named: Sequence[str]) -> None:
    """See that the tools which are to be called are there.

    Args:
        choice: "none", "auto" or "required"; None where tools are named, or nothing is said.
        names: of the tools.
        named: in the choice.

    Raises:
        ValueError: it is not.
    """
    if len(set(names)) < len(names):
        raise ValueError("'tools' has two functions of the same name")
    if not names and (named or choice == "required"):
        raise ValueError("'tool_choice' needs 'tools'")
    for name in named:
        if name not in names:
            raise ValueError(f"'tool_choice' names {name!r}, which is none of 'tools'")


class TopLogprob(Schema):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token that was."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Schema):
    """Of the tokens of the content."""

    content: list[TokenLogprob] | None
    refusal: None


class AnswerMessage(Schema):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(Schema):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Schema):
    """The answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
