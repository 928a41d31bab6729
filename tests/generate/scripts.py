"""Models that answer by a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, NextLogits

VOCAB, CONTEXT = 4096, 64


BOS, EOS, OTHER_EOS = 1, 7, 2


PROMPT = [BOS, 100, 101, 102]


Script = Callable[..., LanguageModel]


def build(tokenizer: Tokenizer, next_logits: NextLogits, **options: Any) -> LanguageModel:
    runtime = FakeRuntime(next_logits, vocab_size=VOCAB, context_length=CONTEXT, **options)
    template = ChatTemplate.from_folder(DEMO_MODEL, tokenizer.special_tokens)
    return LanguageModel(runtime, tokenizer, template)


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token for each byte, so that every longer character is cut."""
    single = {tokenizer.token_bytes(i): i for i in reversed(range(VOCAB))}
    return [single[bytes([byte])] for byte in text.encode()]


def calls(model: LanguageModel) -> list[tuple[str, Any]]:
    """Everything that was asked of the model's sessions."""
    assert isinstance(model.runtime, FakeRuntime)
    return [call for session in model.runtime.sessions for call in session.calls]
