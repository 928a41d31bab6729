"""`Completion`s -> what a person or a program reads about them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lfm2_deploy.commands.console import format_seconds, notes, print_table, printable

if TYPE_CHECKING:
    from lfm2_deploy.completion import Completion
    from lfm2_deploy.sampling import TokenLogprobs
    from lfm2_deploy.tokenizer import Tokenizer


def decode_rate(completion: Completion) -> float | None:
    """Tokens a second after the first, which the prompt's own run gives; None if unknown."""
    steps = len(completion.token_ids) - 1
    if steps < 1 or completion.decode_seconds <= 0:
        return None
    return steps / completion.decode_seconds


def prefill_rate(completion: Completion) -> float | None:
    """Tokens of the prompt that were computed, a second; None if unknown."""
    seconds = completion.prefill_seconds
    computed = completion.prompt_tokens - completion.reused_tokens
    return computed / seconds if seconds > 0 and computed else None


def describe_completion(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON object of one answer."""
    logprobs = completion.logprobs
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "stop": completion.stop,
        "prompt_tokens": completion.prompt_tokens,
        "reused_tokens": completion.reused_tokens,
        "guessed_tokens": completion.guessed_tokens,
        "guessed_right": completion.guessed_right,
        "logprobs": logprobs and [_describe_token(entry, tokenizer) for entry in logprobs],
        "timings": {
            "prefill_seconds": completion.prefill_seconds,
            "decode_seconds": completion.decode_seconds,
            "prefill_tokens_per_second": prefill_rate(completion),
            "decode_tokens_per_second": decode_rate(completion),
        },
    }


def _describe_token(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    def describe(token_id: int, logprob: float) -> dict[str, Any]:
        token = tokenizer.token_text(token_id)
        return {"token_id": token_id, "token": token, "logprob": logprob}

    top = [describe(token_id, logprob) for token_id, logprob in entry.top]
    return {**describe(entry.token_id, entry.logprob), "top": top}


def print_logprobs(entries: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> None:
    """A table on stderr: each token, how likely it was, and what else was likely."""
    rows = []
    for entry in entries:
        others = (f"{_show(tokenizer, i)} {_percent(logprob)}" for i, logprob in entry.top)
        rows.append((_show(tokenizer, entry.token_id), _percent(entry.logprob), ", ".join(others)))
    print_table(("token", ">probability", "likeliest"), rows, notes())


def _show(tokenizer: Tokenizer, token_id: int) -> str:
    return printable(repr(tokenizer.token_text(token_id)))


def _percent(logprob: float) -> str:
    from math import exp

    return f"{exp(logprob):.1%}"


def summarize_speed(*batches: Sequence[Completion]) -> str:
    """One line about the work on a prompt, or on batches of them that ran one after another."""
    completions = list(chain.from_iterable(batches))
    reused = sum(c.reused_tokens for c in completions)
    prompt = sum(c.prompt_tokens for c in completions) - reused
    answer = sum(len(c.token_ids) for c in completions)
    # Of a batch, each row's seconds count the steps of all rows until it ended.
    before = sum(max(c.prefill_seconds for c in batch) for batch in batches)
    after = sum(max(c.decode_seconds for c in batch) for batch in batches)
    later = answer - len(completions)
    parts = [f"prompt {_rate(prompt, prompt, before)}"]
    parts += [f"{reused:,} more reused"] if reused else []
    parts += [f"answer {_rate(answer, later, after)}", *describe_guesses(completions)]
    if len(completions) == 1:
        parts.append(f"ended by {_explain_end(completions[0])}")
    return ", ".join(parts)


def describe_guesses(completions: Sequence[Completion]) -> list[str]:
    """What looking ahead brought, in words; nothing where none was tried."""
    # Of a batch, each answer counts the guesses of all rows.
    guessed = max(c.guessed_tokens for c in completions)
    right = max(c.guessed_right for c in completions)
    return [f"{right:,} of {guessed:,} guesses right"] if guessed else []


def _rate(tokens: int, timed: int, seconds: float) -> str:
    unit = "token" if tokens == 1 else "tokens"
    rate = f" ({timed / seconds:,.1f} tok/s)" if seconds > 0 and timed > 0 else ""
    return f"{tokens:,} {unit} in {format_seconds(seconds)}{rate}"


def _explain_end(completion: Completion) -> str:
    if completion.stop is not None:
        return f"stop text {completion.stop!r}"
    return {"stop": "end of turn", "length": "the limit of its length"}.get(
        completion.finish_reason, completion.finish_reason
    )
