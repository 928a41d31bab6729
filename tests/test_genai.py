"""onnxruntime-genai runs the same bundle and says the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.tokenizer import Tokenizer

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


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_genai_does_not_read_the_token_it_chose_last_before_it_appends(
    kind: str, bundle_of: Any, open_ort: Any
) -> None:
    # genai's own doing (0.18.0): docs/readers.md tells of it until this test fails.
    bundle = bundle_of(kind, "fp16")
    first, second = np.random.default_rng(0).integers(8, 512, (2, 9)).tolist()
    model = og.Model(str(bundle.path))
    errors = {}
    for way in ("chosen by genai", "appended by hand"):
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=64, min_length=64, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(np.array(first, np.int32))
        if way == "chosen by genai":
            generator.generate_next_token()
            chosen = int(generator.get_next_tokens()[0])
        else:
            generator.append_tokens(np.array([chosen], np.int32))
        generator.append_tokens(np.array(second, np.int32))
        expected = open_ort(bundle).open(1, 64).prefill([[*first, chosen, *second]])[0]
        found = generator.get_logits().reshape(-1)
        errors[way] = float(np.abs(found - expected).max() / np.abs(expected).max())
    # Shares of the largest logit: float32 sums in another order, against a token left out.
    assert errors["appended by hand"] < 1e-4
    assert errors["chosen by genai"] > 1e-2


# What genai reads besides the graph


@pytest.fixture(scope="module")
def genai_tokenizer(demo_bundle: Any) -> Any:
    return og.Tokenizer(og.Model(str(demo_bundle.path)))


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time",
        "Élan vital, 東京 🙂\n\n\ttabs  and   spaces",
        "<|im_start|>user\nHi<|im_end|>\n",
        '<|tool_call_start|>[f(a="v")]<|tool_call_end|>',
        "12,345 + 67 = ? I don't know, we'll see",
        "",
    ],
)
def test_genais_tokenizer_gives_our_ids(text: str, genai_tokenizer: Any, demo_bundle: Any) -> None:
    ours = Tokenizer.from_folder(demo_bundle.path)
    ids = [int(token) for token in genai_tokenizer.encode(text)]
    # It adds no <|startoftext|>; a chat template writes it out.
    assert ids == ours.encode(text, add_special_tokens=False)
    assert genai_tokenizer.bos_token_id == 1
    assert list(genai_tokenizer.eos_token_ids) == [7]
    assert genai_tokenizer.bot_token_id == ours.token_id("<|tool_call_start|>")
    assert genai_tokenizer.eot_token_id == ours.token_id("<|tool_call_end|>")


@pytest.mark.parametrize("tools", [None, [{"name": "f", "description": "does <f>"}]])
def test_genais_chat_template_writes_our_prompt(
    tools: Any, genai_tokenizer: Any, demo_bundle: Any
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Hi <there> & "you"'},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
    ours = Tokenizer.from_folder(demo_bundle.path)
    template = ChatTemplate.find(demo_bundle.path, ours.special_tokens)
    assert template is not None
    given = {} if tools is None else {"tools": json.dumps(tools)}
    written = genai_tokenizer.apply_chat_template(
        json.dumps(messages), add_generation_prompt=True, **given
    )
    assert written == template.render(messages, tools=tools, add_generation_prompt=True)


def test_search_options_are_the_models_own(demo_bundle: Any) -> None:
    parameters = og.GeneratorParams(og.Model(str(demo_bundle.path)))
    found = parameters.get_search_options()
    config = json.loads((demo_bundle.path / "generation_config.json").read_text())
    for name in ("do_sample", "temperature", "repetition_penalty"):
        assert found[name] == pytest.approx(config[name]), name
    assert found["max_length"] == demo_bundle.manifest.context_length
