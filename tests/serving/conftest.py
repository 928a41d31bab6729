"""Engines over scripted models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.contracts import Capabilities, FloatArray
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.serving.engine import Engine, EngineLimits
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, NextLogits, hash_logits

VOCAB, CONTEXT = 4096, 2000
ABLE = Capabilities(True, True, 0, True, joins_rows=True)

MakeEngine = Callable[..., Engine]


class Gate:
    """Logits of a model that stops where a test wants it to."""

    def __init__(self) -> None:
        self._logits = hash_logits(VOCAB)
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.poisoned: Callable[[tuple[int, ...]], bool] = lambda tokens: False

    def __call__(self, tokens: tuple[int, ...]) -> FloatArray:
        if not self.open.is_set():
            self.reached.set()
            assert self.open.wait(20), "the test left the model standing"
        if self.poisoned(tokens):
            return np.full(VOCAB, np.nan, np.float32)
        return self._logits(tokens)

    def shut(self) -> None:
        """Stop at the next token."""
        self.reached.clear()
        self.open.clear()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def build_model(
    tokenizer: Tokenizer, logits: NextLogits, able: Capabilities = ABLE
) -> LanguageModel:
    runtime = FakeRuntime(
        logits,
        vocab_size=VOCAB,
        context_length=CONTEXT,
        eos_token_ids=(VOCAB - 1,),
        capabilities=able,
    )
    template = ChatTemplate.from_folder(DEMO_MODEL, tokenizer.special_tokens)
    return LanguageModel(runtime, tokenizer, template)


@pytest.fixture
def make_engine(tokenizer: Tokenizer, gate: Gate) -> Iterator[MakeEngine]:
    """Make an engine whose every token depends on all before it."""
    made: list[Engine] = []

    def make(able: Capabilities = ABLE, **limits: Any) -> Engine:
        made.append(Engine(build_model(tokenizer, gate, able), EngineLimits(**limits)))
        return made[-1]

    yield make
    gate.open.set()
    for engine in made:
        engine.close()


def runtime_of(engine: Engine) -> FakeRuntime:
    runtime = engine.model.runtime
    assert isinstance(runtime, FakeRuntime)
    return runtime


def prefilled(engine: Engine) -> list[list[int]]:
    """Every piece of a prompt that was computed, in order."""
    sessions = runtime_of(engine).sessions
    return [what[0] for one in sessions for kind, what in one.calls if kind == "prefill"]
