"""Fixtures of the tests in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits, scripted_logits

from .scripts import EOS, PROMPT, VOCAB, Script, build, byte_ids


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@pytest.fixture
def random_model(tokenizer: Tokenizer) -> LanguageModel:
    """A model whose next token depends on every token before it."""
    return build(tokenizer, hash_logits(VOCAB))


@pytest.fixture
def script(tokenizer: Tokenizer) -> Script:
    """Make a model that answers PROMPT with given ids or text, and then ends its turn."""

    def make(reply: str | Sequence[int], then: int = EOS, **options: Any) -> LanguageModel:
        ids = byte_ids(tokenizer, reply) if isinstance(reply, str) else reply
        return build(tokenizer, scripted_logits(VOCAB, {tuple(PROMPT): ids}, then), **options)

    return make
