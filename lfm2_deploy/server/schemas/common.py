"""What the APIs have in common: base classes, how to choose tokens, grammars, errors.

Unknown fields are ignored, as OpenAI does; known ones that would change the answer and cannot be
honoured are refused by name. Types are strict: "5" is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lfm2_deploy.server.settings import MOST_STOPS

# Of a field that is there, but asks for nothing.
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})

Text = Annotated[str, Field(min_length=1)]
JsonObject = dict[str, Any]
# One fault is told, so further ones are not looked for: a body has room for millions, and each
# would be a record of its own.
FIRST_FAULT: Any = Field(fail_fast=True)
# Seeds are made non-negative; this is what OpenAI takes.
_SEED = 2**63


class Schema(BaseModel):
    """Base of all."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Request(Schema):
    """Base of requests; `REFUSED` says of fields why they cannot be honoured."""

    REFUSED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, why in cls.REFUSED.items():
                if given.get(name) not in _NOTHING:
                    raise ValueError(f"'{name}' is not supported: {why}")
        return given


Choices = Annotated[list[Text], FIRST_FAULT, Field(min_length=1, max_length=1000)]


class JsonSchemaFormat(Schema):
    """The schema that an answer must follow."""

    name: str = "answer"
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


def at_most(most: int) -> BeforeValidator:
    """A check of how many keys an object has, before its values are looked at."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > most:
            raise ValueError(f"the object has {len(given):,} keys, and at most {most:,} are taken")
        return given

    return BeforeValidator(check)


class StructuredOutputs(Schema):
    """vLLM's way to say what an answer must follow; one of these."""

    json_: JsonObject | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class Choosing(Request):
    """How to choose tokens and when to stop; what is left out is the model's own default."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="0 and -1 are off.")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, at_most(1000)
    ] = Field(
        None, max_length=1000, description="Token id, as text, to what is added to its logit."
    )
    seed: int | None = Field(None, ge=-_SEED, lt=_SEED)
    stop: Text | Annotated[list[Text], FIRST_FAULT, Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0)]], FIRST_FAULT, Field(max_length=64)] | None
    ) = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    guided_json: JsonObject | Text | None = None
    guided_regex: Text | None = None
    guided_grammar: Text | None = None
    guided_choice: Choices | None = None
    structured_outputs: StructuredOutputs | None = None


class StreamOptions(Schema):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class PromptTokensDetails(Schema):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionTokensDetails(Schema):
    """Of the answer's tokens."""

    reasoning_tokens: int


class Timings(Schema):
    """An extension: how long it took."""

    reused_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens_per_second: float | None
    tokens_per_second: float | None


class Usage(Schema):
    """Tokens of prompt and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    x_lfm2: Timings


class ErrorDetail(Schema):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Schema):
    """Every reply that is none of success."""

    error: ErrorDetail


class ModelCard(Schema):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Schema):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]
