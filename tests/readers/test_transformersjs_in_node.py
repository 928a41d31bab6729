"""transformers.js in Node reads a bundle and says what our runtime says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.tokenizer import Tokenizer

from ..logits import FLOAT_EXPERTS, generate  # noqa: TID252
from .agreement import ROUNDING, find_furthest, make_prompts

COUNT = 64


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("demo", "fp32"), ("dense", "fp32"), ("dense", "fp16"), ("dense", "int4"), ("moe", "fp32")],
)
def test_node_generates_the_tokens_of_our_runtime(
    kind: str, precision: str, node: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime]
) -> None:
    bundle = js_bundle_of(kind, precision)
    prompts = make_prompts(bundle, 1, 5, 40)
    ours = [generate(open_ort(bundle), prompt, COUNT) for prompt in prompts]
    assert node.call("generateGreedily", bundle, prompts=prompts, count=COUNT) == ours
    # A model that repeats itself would make this an easy test.
    assert max(len(set(answer)) for answer in ours) > COUNT // 4


@pytest.mark.parametrize(("kind", "precision"), [("demo", "int4"), ("moe", "int8")])
def test_node_generates_our_tokens_but_for_8_bit_activations_of_experts(
    kind: str, precision: str, node: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bundle = js_bundle_of(kind, precision)
    prompts = make_prompts(bundle, 1, 5, 31, 40)
    answers = node.call("generateGreedily", bundle, prompts=prompts, count=COUNT)
    runtime = open_ort(bundle)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert find_furthest(runtime, prompt, answer) < ROUNDING
    # onnxruntime-node 1.30, the newest on npm in November 2026, has none; so do without them, too.
    monkeypatch.setenv(*FLOAT_EXPERTS)
    assert answers == [generate(open_ort(bundle), prompt, COUNT) for prompt in prompts]
    assert max(len(set(answer)) for answer in answers) > COUNT // 4


def test_plain_call_gives_logits_of_every_position(
    node: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime]
) -> None:
    bundle = js_bundle_of("dense", "fp32")
    (prompt,) = make_prompts(bundle, 9)
    found = node.call("scoreAll", bundle, prompt=prompt)
    assert found["shape"] == [1, 9, bundle.config.vocab_size]
    scored = open_ort(bundle).open(1, 9).score([prompt])[0]
    assert found["likeliest"] == scored.argmax(-1).tolist()


def test_chat_is_rendered_and_encoded_as_ours(node: Any, js_bundle_of: Any) -> None:
    bundle = js_bundle_of("demo", "int4")
    messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Who was the naïve captain?\n  He said “no”."},
    ]
    tokenizer = Tokenizer.from_folder(bundle.path)
    text = ChatTemplate.from_folder(bundle.path, tokenizer.special_tokens).render(messages)
    ours = tokenizer.encode(text, add_special_tokens=False)
    assert node.call("renderChat", bundle, messages=messages) == ours
