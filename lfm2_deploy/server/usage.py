"""Answers -> tokens and time in OpenAI's shape, and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.tokenizer import Tokenizer

# What OpenAI tells for a token that could not be: JSON has no infinity.
_LEAST = -9999.0


def count_reasoning(answers: Sequence[Answer], tokenizer: Tokenizer) -> int:
    """Tokens of reasoning, counted anew from its text."""
    return sum(
        len(tokenizer.encode(answer.reasoning, add_special_tokens=False))
        for answer in answers
        if answer.reasoning
    )


def describe_usage(answers: Sequence[Answer], tokenizer: Tokenizer) -> dict[str, Any]:
    """Usage of a request; answers of one prompt have their prompt in common.

    Args:
        answers: of the same prompt, or of several prompts that were joined by `join_usage`.
        tokenizer: the model's.
    """
    usages = [answer.usage for answer in answers]
    prompt = usages[0].prompt_tokens
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": count_reasoning(answers, tokenizer)},
        "x_lfm2": _describe_timings(answers[0]),
    }


def join_usage(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Usage of several prompts of one request; times are the first one's."""
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    joined: dict[str, Any] = {name: sum(part[name] for part in parts) for name in counts}
    for group in ("prompt_tokens_details", "completion_tokens_details"):
        names = parts[0][group]
        joined[group] = {name: sum(part[group][name] for part in parts) for name in names}
    return {**joined, "x_lfm2": parts[0]["x_lfm2"]}


def _describe_timings(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    computed = usage.prompt_tokens - usage.reused_tokens
    is_known = computed > 0 and usage.prefill_seconds > 0
    rate = computed / usage.prefill_seconds if is_known else None
    return {
        "reused_tokens": usage.reused_tokens,
        "queue_seconds": usage.queue_seconds,
        "prefill_seconds": usage.prefill_seconds,
        "decode_seconds": usage.decode_seconds,
        "prompt_tokens_per_second": rate,
        "tokens_per_second": usage.tokens_per_second,
    }


def describe_tokens(
    logprobs: Sequence[TokenLogprobs], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Tokens in the shape of a chat's `logprobs.content`."""
    return [
        {
            **_describe_token(entry.token_id, entry.logprob, tokenizer),
            "top_logprobs": [_describe_token(*pair, tokenizer) for pair in entry.top],
        }
        for entry in logprobs
    ]


def _describe_token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": bound(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def bound(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST
