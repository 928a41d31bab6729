"""One row's answer: while it grows, as it comes, and whole.

Enters: events of `tokens`. Leaves: `TextChunk`s and a `Completion`. Knows nothing of prompts or
runtimes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lfm2_deploy.answer_text import AnswerText
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.tokens import FinishReason, TokenEvent, TokenGeneration


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer.

    Args:
        text: the answer, without the stop string or end-of-turn token that ended it.
        token_ids: every token generated, that one included.
        finish_reason: "stop" (end-of-turn token or stop string), "length" or "cancelled".
        stop: the stop string that ended it, if one did.
        prompt_tokens: tokens of the prompt.
        logprobs: one entry a token, where asked for.
        prefill_seconds: work on the prompt; of a batch, on all prompts.
        decode_seconds: work on the answer; of a batch, on all rows until this one ended.
        reused_tokens: of the prompt, those that a `PromptCache` held already.
        guessed_tokens: looked ahead by prompt lookup; of a batch, of all rows.
        guessed_right: of those, the ones that came true.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...] | None
    prefill_seconds: float
    decode_seconds: float
    reused_tokens: int = 0
    guessed_tokens: int = 0
    guessed_right: int = 0


@dataclass(frozen=True, slots=True)
class TextChunk:
    """What one token added to an answer.

    Args:
        text: whole characters to append, often none; joined, they are `Completion.text`.
        token_id: the token; None where the row was cancelled.
        logprobs: of this token, where asked for.
        row: which prompt of a batch this continues.
        completion: on the last chunk of a row, the whole answer.
    """

    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None
    row: int
    completion: Completion | None


class RunningCompletion:
    """A completion while it grows: events go in, text comes out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: GenerationOptions,
        prompt_tokens: int,
        reused_tokens: int = 0,
    ) -> None:
        self._text = AnswerText(tokenizer, options)
        self._prompt_tokens, self._reused_tokens = prompt_tokens, reused_tokens
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None if options.logprobs is None else []
        self.finish_reason: FinishReason | None = None

    def push(self, event: TokenEvent) -> str:
        """Take one event in; return the text it lets out."""
        text = ""
        self.finish_reason = event.finish_reason
        if event.token_id is not None:
            self._token_ids.append(event.token_id)
            if self._logprobs is not None and event.logprobs is not None:
                self._logprobs.append(event.logprobs)
            if event.finish_reason != "stop":  # the token that ends an answer is not part of it
                text = self._text.push(event.token_id)
        if event.finish_reason is not None:
            text += self._text.flush()
        if self._text.stop is not None:
            self.finish_reason = "stop"
        self._pieces.append(text)
        return text

    def complete(self, reason: FinishReason, generation: TokenGeneration) -> Completion:
        """The finished answer."""
        return Completion(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            finish_reason=reason,
            stop=self._text.stop,
            prompt_tokens=self._prompt_tokens,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            prefill_seconds=generation.prefill_seconds,
            decode_seconds=generation.decode_seconds,
            reused_tokens=self._reused_tokens,
            guessed_tokens=generation.guessed,
            guessed_right=generation.guessed_right,
        )


def stream_completions(
    generation: TokenGeneration, answers: Sequence[RunningCompletion]
) -> Iterator[TextChunk]:
    """The chunks of every row, as they come."""
    for event in generation:
        answer = answers[event.row]
        text = answer.push(event)
        completion = None
        if answer.finish_reason is not None:
            generation.stop(event.row)
            completion = answer.complete(answer.finish_reason, generation)
        yield TextChunk(text, event.token_id, event.logprobs, event.row, completion)
