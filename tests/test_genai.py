"""onnxruntime-genai runs the same bundle and says the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest

from lfm2_deploy.contracts import Runtime

NEW_TOKENS = 64


def generate_with_genai(folder: Path, prompt: Sequence[int]) -> list[int]:
    """Greedy tokens; asking for a minimum length suppresses the end-of-text token."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    length = len(prompt) + NEW_TOKENS
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def generate_with_ours(runtime: Runtime, prompt: Sequence[int]) -> list[int]:
    """Greedy tokens, end-of-text tokens suppressed."""
    session = runtime.open(1, len(prompt) + NEW_TOKENS)
    logits, tokens = session.prefill([prompt]), []
    for _ in range(NEW_TOKENS):
        logits[0, list(runtime.config.eos_token_ids)] = -np.inf
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens


@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_genai_generates_the_tokens_of_our_runtime(
    kind: str, precision: str, length: int, bundle_of: Any, open_ort: Any
) -> None:
    bundle = bundle_of(kind, precision)
    prompt = np.random.default_rng(length).integers(8, 512, length).tolist()
    ours = generate_with_ours(open_ort(bundle), prompt)
    assert generate_with_genai(bundle.path, prompt) == ours
    # A model that repeats itself would make this an easy test.
    assert len(set(ours)) > NEW_TOKENS // 4
