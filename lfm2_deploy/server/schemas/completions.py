"""/v1/completions: what is taken and given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lfm2_deploy.server.schemas.chat import ResponseFormat
from lfm2_deploy.server.schemas.common import (
    FIRST_FAULT,
    Choosing,
    Schema,
    StreamOptions,
    Text,
    Usage,
)
from lfm2_deploy.server.settings import MOST_CHOICES

# Above any vocabulary.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], FIRST_FAULT, Field(min_length=1)]


class CompletionRequest(Choosing):
    """Texts to go on with, as they are."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "chat_template": "this endpoint takes plain text",
        "suffix": "the model cannot fill a gap",
        "use_beam_search": "use 'n'",
    }

    prompt: (
        Text
        | Annotated[list[Text], FIRST_FAULT, Field(min_length=1, max_length=MOST_CHOICES)]
        | Ids
        | Annotated[list[Ids], FIRST_FAULT, Field(min_length=1, max_length=MOST_CHOICES)]
    )
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.best_of not in (None, 1, self.n):
            raise ValueError("'best_of' is not supported: use 'n'")
        if self.echo and self.logprobs is not None:
            raise ValueError("'echo' with 'logprobs' is not supported: leave one of them out")
        if len(self.prompts) * (self.n or 1) > MOST_CHOICES:
            raise ValueError(f"prompts times 'n' are more than {MOST_CHOICES} answers")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, however it was given."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [item for item in given if not isinstance(item, int)]


class CompletionLogprobs(Schema):
    """Of the tokens of the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Schema):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Schema):
    """The answers."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
