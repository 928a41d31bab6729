"""Bundles as optimum-onnx's causal language model: the tokens of our runtime and of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.onnxruntime", reason="NOT RUN: optimum-onnx is not installed")

import numpy as np
import torch

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError, GenerationError, RuntimeUnavailableError
from lfm2_deploy.integrations.optimum import Lfm2ORTModelForCausalLM
from lfm2_deploy.registry import find_runtime
from runtimes.reference import load as load_reference

BundleOf = Callable[..., Bundle]
# Two float32 implementations, as a share of the largest logit; see test_exactness.py.
FLOAT_ORDER = 1e-4
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def make_row(length: int) -> list[int]:
    row: list[int] = np.random.default_rng(length).integers(8, 512, length).tolist()
    return row


def go_on(model: Any, rows: Sequence[Sequence[int]], count: int, **options: Any) -> list[list[int]]:
    """What transformers' `generate` writes after rows, which it gets padded at the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, **{**GREEDY, **options})
    written: list[list[int]] = out[:, width:].tolist()
    return written


def write_greedily(runtime: Runtime, row: Sequence[int], count: int) -> list[int]:
    """The same through a runtime of ours."""
    session = runtime.open(1, len(row) + count)
    logits, written = session.prefill([row]), []
    for _ in range(count):
        written.append(int(logits[0].argmax()))
        logits = session.decode([written[-1]])
    return written


@pytest.fixture(scope="module")
def dense(bundle_of: BundleOf) -> Any:
    return Lfm2ORTModelForCausalLM.from_pretrained(bundle_of("dense", "fp32").path)


@pytest.fixture(scope="module")
def demo_of(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bundle]:
    """The demo model, a mixture of experts, by precision."""
    root = tmp_path_factory.mktemp("demo")
    return {p: export(str(DEMO_MODEL), root / p, precision=p) for p in ("fp32", "int4")}


# Tokens


def test_greedy_tokens_are_those_of_transformers_and_of_our_runtime(
    dense: Any, bundle_of: BundleOf, transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(9)
    written = go_on(dense, [row], 24)[0]
    assert written == go_on(transformers_models["dense"], [row], 24)[0]
    runtime = find_runtime("ort")(bundle_of("dense", "fp32"), threads=1)
    assert written == write_greedily(runtime, row, 24)
    assert len(set(written)) > 6


def test_greedy_tokens_of_a_mixture_are_those_of_torch_and_of_our_runtime(
    demo_of: Mapping[str, Bundle],
) -> None:
    row = make_row(12)
    written = go_on(Lfm2ORTModelForCausalLM.from_pretrained(demo_of["fp32"].path), [row], 24)[0]
    assert written == write_greedily(load_reference(open_checkpoint(str(DEMO_MODEL))), row, 24)
    assert written == write_greedily(find_runtime("ort")(demo_of["fp32"], threads=1), row, 24)


@pytest.mark.parametrize("kind", ["dense", "demo"])
def test_greedy_tokens_in_int4_are_those_of_our_runtime(
    kind: str, bundle_of: BundleOf, demo_of: Mapping[str, Bundle]
) -> None:
    bundle = demo_of["int4"] if kind == "demo" else bundle_of("dense", "int4")
    row = make_row(12)
    written = go_on(Lfm2ORTModelForCausalLM.from_pretrained(bundle.path), [row], 24)[0]
    assert written == write_greedily(find_runtime("ort")(bundle), row, 24)


def test_rows_padded_at_the_left_write_what_they_write_alone(dense: Any) -> None:
    rows = [make_row(3), make_row(11), make_row(7)]
    assert go_on(dense, rows, 16) == [go_on(dense, [row], 16)[0] for row in rows]


def test_beams_are_those_of_transformers(
    dense: Any, transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(9)
    beams = {"num_beams": 4, "num_return_sequences": 4}
    written = go_on(dense, [row], 12, **beams)
    # Without its cache: beams of transformers 4.57.6's Lfm2HybridConvCache end in an IndexError.
    exact = transformers_models["dense"]
    assert written == go_on(exact, [row], 12, **beams, use_cache=False)
    # Beams that part and swap places, so that states must follow.
    assert len({tuple(beam) for beam in written}) == 4


# Calls


@torch.inference_mode()
def test_logits_lie_where_their_tokens_are_wherever_padding_is(
    dense: Any, transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(5)
    exact = transformers_models["dense"](torch.tensor([row])).logits[0]
    ids = torch.tensor([[0, 0, *row], [*row, 0, 0], [*row[:2], 0, 0, *row[2:]]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 1]])
    logits = dense(ids, attention_mask=mask).logits
    assert logits.shape == (3, 7, 512)
    for found, real in zip(logits, mask.bool(), strict=True):
        assert (found[real] - exact).abs().max() < FLOAT_ORDER * exact.abs().max()
        assert not found[~real].any()


@torch.inference_mode()
def test_prompt_in_pieces_of_other_lengths_a_row_gives_the_same(dense: Any) -> None:
    whole = torch.tensor([make_row(8), make_row(9)[:8]])
    expected = dense(whole).logits[:, -1]
    # The second row gets one token in the first call, and seven in the second.
    first = torch.tensor([whole[0, :4].tolist(), [0, 0, 0, int(whole[1, 0])]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    begun = dense(first, attention_mask=mask)
    rest = torch.tensor([[0, 0, 0, *whole[0, 4:].tolist()], whole[1, 1:].tolist()])
    mask = torch.cat([mask, torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])], dim=1)
    ended = dense(
        rest, attention_mask=mask, past_key_values=begun.past_key_values, logits_to_keep=1
    )
    assert ended.logits.shape == (2, 1, 512)
    gap = (ended.logits[:, 0] - expected).abs().max()
    assert gap < FLOAT_ORDER * expected.abs().max()


def test_what_cannot_be_done_is_refused_in_one_line(dense: Any, bundle_of: BundleOf) -> None:
    row = torch.tensor([make_row(4)])
    with pytest.raises(GenerationError, match="all zeros"):
        dense(row, attention_mask=torch.zeros_like(row))
    with pytest.raises(GenerationError, match=r"shape \(1, 3\), expected \(1, 4\)"):
        dense(row, attention_mask=torch.ones(1, 3))
    with pytest.raises(GenerationError, match="inputs_embeds"):
        dense(row, inputs_embeds=torch.zeros(1, 4, 128))
    with pytest.raises(ValueError, match="not supported with stateful models"):
        dense.generate(row, prompt_lookup_num_tokens=2, max_new_tokens=4, **GREEDY)
    path = bundle_of("dense", "fp32").path
    with pytest.raises(RuntimeUnavailableError, match="use_io_binding"):
        Lfm2ORTModelForCausalLM.from_pretrained(path, use_io_binding=True)


def test_bundle_for_another_target_is_refused(tmp_path: Path) -> None:
    bundle = export("synthetic:tiny-dense", tmp_path / "gpu", target="webgpu", precision="fp32")
    with pytest.raises(BundleError, match="lfm2-deploy export --target cpu"):
        Lfm2ORTModelForCausalLM.from_pretrained(bundle.path)


@pytest.mark.parametrize("io", [(), ("transformersjs",)])
def test_saved_model_loads_and_writes_the_same(
    io: Sequence[str], checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    """For transformers.js, weights lie in a folder below."""
    bundle = export(str(checkpoints["dense"]), tmp_path / "made", precision="fp32", io=io)
    model = Lfm2ORTModelForCausalLM.from_pretrained(bundle.path)
    model.save_pretrained(tmp_path / "saved")
    again = Lfm2ORTModelForCausalLM.from_pretrained(tmp_path / "saved")
    row = make_row(6)
    assert go_on(again, [row], 8) == go_on(model, [row], 8)
