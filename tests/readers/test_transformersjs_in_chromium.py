"""transformers.js in a browser reads a bundle and says what our runtime says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime

from ..logits import generate  # noqa: TID252
from .agreement import ROUNDING, find_furthest, make_prompts

COUNT = 64
# Chromium's software adapter takes up to a second for a token of a tiny model.
FEW = 4


@pytest.mark.parametrize("kind", ["demo", "dense"])
def test_webassembly_generates_the_tokens_of_our_runtime(
    kind: str, browser_with: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime]
) -> None:
    bundle = js_bundle_of(kind, "fp32")
    prompts = make_prompts(bundle, 1, 40)
    ours = [generate(open_ort(bundle), prompt, COUNT) for prompt in prompts]
    found = browser_with("wasm").call("generateGreedily", bundle, prompts=prompts, count=COUNT)
    assert found == ours
    assert max(len(set(answer)) for answer in ours) > COUNT // 4


@pytest.mark.parametrize("kind", ["demo", "dense"])
def test_webassembly_in_int4_chooses_tokens_as_likely_as_ours(
    kind: str, browser_with: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime]
) -> None:
    bundle = js_bundle_of(kind, "int4")
    prompts = make_prompts(bundle, 1, 20)
    answers = browser_with("wasm").call("generateGreedily", bundle, prompts=prompts, count=COUNT)
    runtime = open_ort(bundle)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == COUNT
        assert find_furthest(runtime, prompt, answer) < ROUNDING


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_webgpu_generates_the_tokens_of_our_runtime(
    kind: str, browser_with: Any, js_bundle_of: Any, open_ort: Callable[[Bundle], Runtime]
) -> None:
    reader = browser_with("webgpu")
    if reader.find_adapter() is None:
        pytest.skip("NOT RUN: this Chromium has no WebGPU adapter, not even SwiftShader's")
    bundle = js_bundle_of(kind, "fp32")
    # From 32 tokens on, onnxruntime-web 1.31.0-dev.20260914 reads a prompt by a kernel that is
    # wrong on SwiftShader, whose subgroups are of 4: from the fifth position on, and there alone.
    prompts = make_prompts(bundle, 1, 20)
    ours = [generate(open_ort(bundle), prompt, FEW) for prompt in prompts]
    assert reader.call("generateGreedily", bundle, prompts=prompts, count=FEW) == ours
