"""Bundles for openvino-cpu as optimum-intel's causal language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("optimum.intel", reason="NOT RUN: optimum-intel is not installed")

import numpy as np
import torch
from optimum.intel import OVModelForCausalLM

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.registry import find_runtime

BundleOf = Callable[..., Bundle]
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
# What our runtime asks of OpenVINO; its defaults round keys, values and activations otherwise.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
GROUPS = {"fp32": "0", "int4": "128"}


def make_row(length: int) -> list[int]:
    row: list[int] = np.random.default_rng(length).integers(8, 512, length).tolist()
    return row


def load(bundle: Bundle) -> Any:
    settings = {**EXACT, "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUPS[bundle.manifest.precision]}
    return OVModelForCausalLM.from_pretrained(bundle.path, ov_config=settings)


def go_on(model: Any, rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """What transformers' `generate` writes after rows, which it gets padded at the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, **GREEDY)
    written: list[list[int]] = out[:, width:].tolist()
    return written


def write_greedily(bundle: Bundle, row: Sequence[int], count: int) -> list[int]:
    """The same through our runtime."""
    session = find_runtime("openvino")(bundle).open(1, len(row) + count)
    logits, written = session.prefill([row]), []
    for _ in range(count):
        written.append(int(logits[0].argmax()))
        logits = session.decode([written[-1]])
    return written


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_greedy_tokens_are_those_of_transformers_and_of_our_runtime(
    kind: str, bundle_of: BundleOf, transformers_models: Mapping[str, Any]
) -> None:
    bundle = bundle_of(kind, "fp32", "openvino-cpu")
    row = make_row(9)
    written = go_on(load(bundle), [row], 24)[0]
    assert written == go_on(transformers_models[kind], [row], 24)[0]
    assert written == write_greedily(bundle, row, 24)
    assert len(set(written)) > 6


def test_greedy_tokens_in_int4_are_those_of_our_runtime(bundle_of: BundleOf) -> None:
    bundle = bundle_of("dense", "int4", "openvino-cpu")
    row = make_row(9)
    assert go_on(load(bundle), [row], 24)[0] == write_greedily(bundle, row, 24)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_greedy_tokens_of_the_demo_model_are_those_of_our_runtime(
    precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("demo") / precision
    bundle = export(str(DEMO_MODEL), place, target="openvino-cpu", precision=precision)
    row = make_row(9)
    assert go_on(load(bundle), [row], 24)[0] == write_greedily(bundle, row, 24)


def test_rows_padded_at_the_left_write_what_they_write_alone(bundle_of: BundleOf) -> None:
    model = load(bundle_of("dense", "fp32", "openvino-cpu"))
    rows = [make_row(3), make_row(11), make_row(7)]
    assert go_on(model, rows, 12) == [go_on(model, [row], 12)[0] for row in rows]
