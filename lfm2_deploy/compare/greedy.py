"""Greedy texts of a subject, judged token by token by the reference.

The reference never generates: it reads what the subject wrote, and at each token says what
it would have chosen. Up to the first it would not have chosen, its own greedy text is the
same, so the first divergent token is exact; and it costs one pass, however large the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lfm2_deploy.compare.metrics import log_softmax
from lfm2_deploy.compare.result import GreedyRun
from lfm2_deploy.compare.scorer import Request
from lfm2_deploy.compare.words import Words
from lfm2_deploy.contracts import FloatArray, Runtime


@dataclass(frozen=True, slots=True)
class Written:
    """What a subject wrote after a prompt."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def request(self) -> Request:
        """What the reference reads to judge it: the last token need not be read."""
        return Request((*self.prompt, *self.tokens[:-1]), len(self.prompt) - 1)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the reference says at one token.

    Args:
        choice: its own.
        choice_log_probability, written_log_probability: of its own and of what was written.
    """

    choice: int
    choice_log_probability: float
    written_log_probability: float


def write_greedily(runtime: Runtime, prompt: Sequence[int], count: int) -> Written | None:
    """Let a runtime continue a prompt by its likeliest tokens, up to its end-of-turn token.

    Returns:
        None where the context has no room for a token.
    """
    count = min(count, runtime.context_length - len(prompt))
    if count < 1:
        return None
    session = runtime.open(1, len(prompt) + count)
    tokens = [int(session.prefill([prompt])[0].argmax())]
    while len(tokens) < count and tokens[-1] not in runtime.config.eos_token_ids:
        tokens.append(int(session.decode([tokens[-1]])[0].argmax()))
    return Written(tuple(prompt), tuple(tokens))


def judge(written: Written, logits: FloatArray) -> list[Judgement]:
    """What the reference says to each token.

    Args:
        written: n tokens.
        logits: the reference's, float32 [n, V], before each of them.
    """
    log_probabilities = log_softmax(logits)
    choices = logits.argmax(-1)
    places = np.arange(len(choices))
    own = log_probabilities[places, choices].tolist()
    theirs = log_probabilities[places, list(written.tokens)].tolist()
    return [Judgement(*said) for said in zip(choices.tolist(), own, theirs, strict=True)]


def describe_run(written: Written, said: Sequence[Judgement], words: Words) -> GreedyRun:
    """A run for the report."""
    same = [
        token == judgement.choice for token, judgement in zip(written.tokens, said, strict=True)
    ]
    equal = same.index(False) if False in same else len(same)
    run = GreedyRun(
        prompt=words.read(written.prompt),
        tokens=len(same),
        equal=equal,
        common=words.read(written.tokens[:equal]),
        subject_text=words.read(written.tokens[equal:]),
        reference_choice=None,
        subject_choice=None,
        margin=None,
        agreement=sum(same) / len(same),
    )
    if equal == len(same):
        return run
    here = said[equal]
    own, theirs = here.choice_log_probability, here.written_log_probability
    return replace(
        run,
        reference_choice=words.candidate(here.choice, math.exp(own)),
        subject_choice=words.candidate(written.tokens[equal], math.exp(theirs)),
        margin=own - theirs,
    )
