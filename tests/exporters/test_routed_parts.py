"""The parts of a long prompt of a mixture, which DirectML's target makes besides two graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.draft import Draft
from exporters.lowering import build_drafts
from exporters.options import ExportOptions
from exporters.pipeline import export_checkpoint
from exporters.quantize.plan import Precision, TensorPlan
from exporters.stitch import BlockTracer
from exporters.targets.directml import DIRECTML, plan
from lfm2_deploy.contracts import Checkpoint, ignore_progress
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import PIECES, SUMMED
from lfm2_deploy.weights import WeightSpec
from runtimes.directml import make_runtime
from runtimes.gpu_memory import DeviceMemory
from runtimes.gpu_provider import load_graph_on_cpu

Build = Callable[..., dict[str, Draft]]
# Layers 2 and 3 have experts; widths in which 8 bits have an even number of groups.
MIXTURE: Mapping[str, Any] = {"hidden_size": 128, "moe_intermediate_size": 64, "vocab_size": 128}


@pytest.fixture
def build(make_checkpoint: Callable[..., Checkpoint], trace_once: BlockTracer) -> Build:
    def make(precision: Precision = "int4", **options: Any) -> dict[str, Draft]:
        config = make_checkpoint(**{**MIXTURE, **options}).config
        return build_drafts(config, ExportOptions(DIRECTML, precision), trace_once)

    return make


def ends(values: Sequence[ir.Value]) -> set[str | None]:
    return {value.name for value in values}


def test_mixture_has_parts_and_a_model_without_experts_has_none(build: Build) -> None:
    parts = [f"prefill.{n}" for n in ("first", "conv", "last", "experts", "sum")]
    # Layer 2 ends the first part, so attention needs no other.
    assert list(build()) == ["prefill", "decode", *parts]
    assert list(build(num_dense_layers=4)) == ["prefill", "decode"]


def test_part_for_layers_of_a_kind_names_none_of_them(build: Build) -> None:
    draft = build("fp16", num_dense_layers=0)["prefill.conv"]
    layer = "model.layers.*"
    assert ends(draft.graph.inputs) == {
        "hidden",
        "conv_ends",
        "past.*.conv",
        f"{layer}.operator_norm.weight.fp16",
        f"{layer}.conv.in_proj.weight.turned.fp16",
        f"{layer}.conv.conv.weight.fp16",
        f"{layer}.conv.out_proj.weight.turned.fp16",
        f"{layer}.ffn_norm.weight.fp16",
        f"{layer}.feed_forward.gate.weight.turned.fp32",
        f"{layer}.feed_forward.expert_bias.fp32",
    }
    assert ends(draft.graph.outputs) == {
        "x",
        "residual",
        "scores",
        "probabilities",
        "present.*.conv",
    }
    # Layer 0 is in the first part.
    assert {name.split(".")[2] for name in draft.bound} == {"3"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_parts_store_no_weight_that_other_graphs_do_not(precision: Precision, build: Build) -> None:
    def list_declared(*names: str) -> set[str]:
        drafts = build(precision)
        used = {
            n for name in names for n in (*drafts[name].graph.initializers, *drafts[name].bound)
        }
        return {n for n in used if n in drafts["decode"].book.declared}

    apart = list_declared("prefill", "decode")
    in_parts = list_declared(*(name for name in build(precision) if name.startswith("prefill.")))
    # In 8 bits an expert alone may have fewer zero points than any other matrix: bytes of 128.
    assert {name for name in in_parts - apart if not name.startswith("zero_points.")} == set()


def test_experts_read_every_layers_stack_by_index(build: Build) -> None:
    draft = build("int4")["prefill.experts"]
    stacks = {name for name in draft.bound if ".experts." in name}
    assert stacks == {
        f"model.layers.{layer}.feed_forward.experts.{part}"
        for layer in (2, 3)
        for part in ("gate_up", "down", "gate_up.scales", "down.scales")
    }
    products = draft.find("MatMulNBits", "com.microsoft")
    assert len(products) == 2 * PIECES
    answers = {f"answers.{n}" for n in range(SUMMED)}
    inputs = ends(build("int4")["prefill.sum"].graph.inputs)
    assert inputs == {*answers, "places", "residual"}


def test_layers_stored_differently_cannot_share_a_part(
    make_checkpoint: Callable[..., Checkpoint], trace_once: BlockTracer
) -> None:
    def mixed(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
        found = dict(plan(weights, precision))
        (name,) = (n for n in found if ".3." in n and n.endswith("in_proj.weight"))
        found[name] = TensorPlan(32, 0, "a test")
        return found

    config = make_checkpoint(**MIXTURE, num_dense_layers=0, layer_types=["conv"] * 4).config
    options = ExportOptions(replace(DIRECTML, plan=mixed), "int4")
    with pytest.raises(ExportError, match=r"model\.layers\.3\.conv.* is not stored as"):
        build_drafts(config, options, trace_once)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_dense_layers": 0},
        {"num_dense_layers": 3},
        {"use_expert_bias": False, "norm_topk_prob": False},
        {"tie_word_embeddings": False, "num_experts_per_tok": 5},
    ],
    ids=["no dense layer", "one mixture", "no bias", "all experts chosen"],
)
def test_model_of_another_shape_gives_the_dense_logits(
    shape: dict[str, Any], make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(**{**MIXTURE, **shape})
    options = ExportOptions(DIRECTML, "fp32")
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", options, ignore_progress)
    ids = [(5 * n * n) % 100 for n in range(50)]
    routed, dense = (
        make_runtime(
            bundle,
            partial(load_graph_on_cpu, threads=1),
            DeviceMemory("cpu"),
            "cpu",
            routed_from=start,
        )
        .open(1)
        .score([ids])[0]
        for start in (1, 1 << 30)
    )
    # The same products in another order.
    assert np.abs(routed - dense).max() < 1e-5 * np.abs(dense).max()
