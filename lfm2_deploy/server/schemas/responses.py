"""/v1/responses: what is taken and given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lfm2_deploy.server.schemas.chat import (
    OWN_TEMPLATE,
    Content,
    FunctionCall,
    FunctionName,
    JsonObjectFormat,
    TextFormat,
    check_tool_choice,
)
from lfm2_deploy.server.schemas.common import (
    FIRST_FAULT,
    Choosing,
    JsonObject,
    Schema,
    Text,
    at_most,
)
from lfm2_deploy.server.settings import MOST_LOGPROBS, MOST_MESSAGES

LOGPROBS = "message.output_text.logprobs"
# As long as OpenAI takes them.
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class MessageItem(Schema):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class FunctionCallItem(FunctionCall):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text


class FunctionOutputItem(Schema):
    """What a function gave back."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Content


class ReasoningText(Schema):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


ReasoningTexts = Annotated[list[ReasoningText], FIRST_FAULT]


class ReasoningItem(Schema):
    """What the model thought before."""

    type: Literal["reasoning"]
    summary: ReasoningTexts = Field(default_factory=list)
    content: ReasoningTexts | None = None


Item = Annotated[
    MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem,
    Field(discriminator="type"),
]
_KINDS = ("message", "function_call", "function_call_output", "reasoning")


class ResponseTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ChosenTool(Schema):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


class AllowedChoice(Schema):
    """Which functions may be called, or one of them must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], FIRST_FAULT, Field(min_length=1, max_length=128)]


class ResponseSchemaFormat(Schema):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: str = "answer"
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Schema):
    """What the text must be."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | ResponseSchemaFormat, Field(discriminator="type")]
        | None
    ) = None


class ResponseRequest(Choosing):
    """What to answer."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "background": "answers come at once",
        "chat_template": OWN_TEMPLATE,
        "conversation": "use 'previous_response_id'",
        "prompt": "there are no stored prompts: use 'instructions' and 'input'",
    }

    input: Text | Annotated[list[Item], FIRST_FAULT, Field(min_length=1, max_length=MOST_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    include: Annotated[list[str], FIRST_FAULT] | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    tools: Annotated[list[ResponseTool], FIRST_FAULT, Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    # It comes back in the reply.
    metadata: Annotated[dict[MetadataKey, MetadataValue] | None, at_most(16)] = Field(
        None, max_length=16
    )
    user: Annotated[str, Field(max_length=512)] | None = None
    chat_template_kwargs: JsonObject | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_items(cls, given: Any) -> Any:
        items = given.get("input") if isinstance(given, dict) else None
        if not isinstance(items, list):
            return given
        return {**given, "input": [_name_item(item) for item in items]}

    @model_validator(mode="after")
    def _check(self) -> ResponseRequest:
        choice = self.tool_choice
        named = [choice.name] if isinstance(choice, ChosenTool) else []
        if isinstance(choice, AllowedChoice):
            named = [tool.name for tool in choice.tools]
        check_tool_choice(
            choice if isinstance(choice, str) else None,
            [tool.name for tool in self.tools or ()],
            named,
        )
        return self


def _name_item(item: Any) -> Any:
    """An item with its type, which messages may leave out."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type")
    if kind is None and "role" in item:
        return {**item, "type": "message"}
    if isinstance(kind, str) and kind not in _KINDS:
        raise ValueError(f"input of type '{kind[:40]}' is not supported: use {', '.join(_KINDS)}")
    return item


class ResponseUsage(Schema):
    """Tokens."""

    input_tokens: int
    input_tokens_details: JsonObject
    output_tokens: int
    output_tokens_details: JsonObject
    total_tokens: int
    x_lfm2: JsonObject


class Response(Schema):
    """The answer."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: JsonObject | None
    incomplete_details: JsonObject | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[JsonObject]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float | None
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    metadata: dict[str, str]


class Deleted(Schema):
    """A response that is kept no longer."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
