"""Which tensors are stored how; no array is made."""

from __future__ import annotations

import pytest

from exporters.quantize.plan import PRECISIONS, Precision, TensorPlan, plan_tensor, plan_tensors
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import WeightRole, WeightSpec, list_weights

EXACT: tuple[WeightRole, ...] = ("router", "bias", "norm", "conv")
LARGE: tuple[WeightRole, ...] = ("projection", "expert")
TABLES: tuple[WeightRole, ...] = ("embedding", "head")


def plan(role: WeightRole, precision: Precision, width: int = 64) -> TensorPlan:
    return plan_tensor(WeightSpec("some.weight", (256, width), role), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", EXACT)
def test_what_decides_or_is_small_stays_float32(role: WeightRole, precision: Precision) -> None:
    entry = plan(role, precision)
    assert (entry.bits, entry.group, entry.is_quantized) == (32, 0, False)


@pytest.mark.parametrize("role", [*LARGE, *TABLES])
@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("fp16", 16)])
def test_float_precision_stores_floats(role: WeightRole, precision: Precision, bits: int) -> None:
    entry = plan(role, precision)
    assert (entry.bits, entry.group, entry.is_quantized) == (bits, 0, False)


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize(
    ("name", "role", "group"),
    [
        ("model.layers.0.conv.in_proj.weight", "projection", 32),
        ("model.layers.0.feed_forward.w1.weight", "projection", 128),
        ("model.layers.0.feed_forward.experts.0.w1.weight", "expert", 128),
    ],
)
def test_integers_share_scales_in_groups_by_kind(
    name: str, role: WeightRole, group: int, precision: Precision, bits: int
) -> None:
    entry = plan_tensor(WeightSpec(name, (256, 512), role), precision)
    assert (entry.bits, entry.group, entry.is_quantized) == (bits, group, True)


@pytest.mark.parametrize("role", TABLES)
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_embedding_and_head_keep_8_bits(role: WeightRole, precision: Precision) -> None:
    entry = plan(role, precision, width=256)
    assert (entry.bits, entry.group, entry.is_quantized) == (8, 256, True)


def test_a_width_that_large_groups_do_not_divide_takes_smaller_ones() -> None:
    assert plan("head", "int4", width=192).group == 64
    assert plan("head", "int4", width=96).group == 32


def test_matrices_of_one_expert_share_a_group() -> None:
    # QMoE has one block_size: [I, H] and [H, I] must agree whichever is the narrow one.
    wide = plan_tensor(WeightSpec("x.w1.weight", (192, 2048), "expert"), "int4")
    narrow = plan_tensor(WeightSpec("x.w2.weight", (2048, 192), "expert"), "int4")
    assert wide.group == narrow.group == 64


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("role", [*EXACT, *LARGE, *TABLES])
def test_every_entry_says_why(role: WeightRole, precision: Precision) -> None:
    assert len(plan(role, precision).reason) > 10


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("role", [*LARGE, *TABLES])
def test_width_that_groups_do_not_divide_is_refused(role: WeightRole, precision: Precision) -> None:
    with pytest.raises(ExportError) as caught:
        plan(role, precision, width=80)
    message = str(caught.value)
    assert "some.weight is 256 x 80" in message
    assert "groups of 32" in message
    assert "--precision fp16 or fp32" in message


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("role", EXACT)
def test_any_width_will_do_for_what_stays_float32(role: WeightRole, precision: Precision) -> None:
    assert plan(role, precision, width=3).bits == 32


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_width_will_do_for_floats(precision: Precision) -> None:
    assert not plan("projection", precision, width=3).is_quantized


def test_plan_of_a_model_has_every_tensor_in_order(checkpoint: Checkpoint) -> None:
    weights = list_weights(checkpoint.config)
    plans = plan_tensors(weights, "int4")
    assert list(plans) == [weight.name for weight in weights]
    assert plans["model.layers.2.feed_forward.experts.4.w2.weight"].bits == 4
    assert plans["model.layers.2.feed_forward.gate.weight"].bits == 32
    assert plans["model.embed_tokens.weight"].bits == 8
