"""What an answer consists of, as it comes: typed events, and the finished answer.

Enters: nothing. Leaves: values that `serving`, `server` and desktop programs exchange.
Joined, the events of one choice are its `Answer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lfm2_deploy.sampling import TokenLogprobs

AnswerReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called.

    Args:
        id: tells calls apart, such as "call_1f3a...".
        name: the function's.
        arguments: a JSON object, as text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text to append to the answer.

    Args:
        text: whole characters; may be empty where only `logprobs` are told.
        logprobs: of the tokens since the last event, where asked for.
        choice: which of several answers to one prompt this continues.
    """

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text to append to the reasoning that precedes the answer; see `TextDelta`."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """The model begins to call a function.

    Args:
        index: which call of this answer, from 0.
        id: see `ToolCall`.
        name: the function's.
        choice: see `TextDelta`.
    """

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """JSON text to append to a call's arguments; joined, they are one JSON object.

    Of a call that was cut, arguments may be cut or missing: `Answer.tool_calls` has it not.
    """

    index: int
    text: str
    choice: int = 0


# What a parser makes of a model's text.
Part: TypeAlias = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallArguments


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and time of one answer.

    Args:
        prompt_tokens: of the prompt.
        completion_tokens: of the answer, reasoning and the end-of-turn token included.
        reused_tokens: of the prompt, those computed for an earlier one.
        queue_seconds: from the request to its first work.
        prefill_seconds: from there to the first token, other requests' work included.
        decode_seconds: from there to the last token, other requests' work included.
    """

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None for answers of one token."""
        if self.completion_tokens < 2 or self.decode_seconds <= 0:
            return None
        return (self.completion_tokens - 1) / self.decode_seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer.

    Args:
        text: what is to be shown, without reasoning, calls of tools and stop strings.
        reasoning: what stood in <think>, "" where there was none.
        tool_calls: functions to call, in order; those that were written to their end.
        finish_reason: "stop", "length", "tool_calls" or "cancelled".
        usage: tokens and time.
        stop: the stop string that ended it, if one did.
        token_ids: every token generated.
        logprobs: one entry a token, where asked for.
        choice: which of several answers to one prompt.
    """

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: AnswerReason
    usage: Usage
    stop: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer has ended; nothing follows for its choice."""

    answer: Answer

    @property
    def choice(self) -> int:
        """See `TextDelta`."""
        return self.answer.choice


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallStarted | ToolCallArguments | Finished
