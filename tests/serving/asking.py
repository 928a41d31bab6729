"""Asking an engine, and waiting for what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.serving.engine import Engine
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits

from .conftest import VOCAB, build_model

PROMPT = [1, 100, 101, 102]
LONG = list(range(200, 600))


def wait_until(condition: Callable[[], bool]) -> None:
    """20 s are for a machine that is busy with other things; a fault shows as an assertion."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


def ask_together(engine: Engine, prompts: list[list[int]], **options: object) -> list[Answer]:
    streams = [engine.stream(prompt, **options) for prompt in prompts]
    return [stream.answers()[0] for stream in streams]


def alone(tokenizer: Tokenizer, prompt: list[int], **options: object) -> tuple[int, ...]:
    model = build_model(tokenizer, hash_logits(VOCAB))
    return model.generate(prompt, **options).token_ids
