"""What each Intel device is given: groups, bits, and parts of graphs."""

from __future__ import annotations

from collections import Counter

import pytest

from exporters.passes.ov.feed_forward import choose_parts
from exporters.targets import npu, ov
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import WeightSpec, list_weights

DENSE = list_weights(open_checkpoint("synthetic:LFM2-350M").config)
MOE = list_weights(open_checkpoint("synthetic:LFM2-8B-A1B").config)


def test_openvino_int4_has_groups_of_128_and_tables_by_row() -> None:
    plan = ov.plan(DENSE, "int4")
    groups = Counter((entry.bits, entry.group) for entry in plan.values() if entry.is_quantized)
    assert groups == {
        (4, 128): len(DENSE) - sum(not p.is_quantized for p in plan.values()) - 1,
        (8, 1024): 1,
    }


def test_npu_int4_scales_whole_rows_and_keeps_gates_in_8_bits() -> None:
    plan = npu.plan(DENSE, "int4")
    for weight in DENSE:
        entry = plan[weight.name]
        if entry.is_quantized:
            assert entry.group == weight.shape[-1]
    bits = {name.rpartition("layers.3.")[2]: entry.bits for name, entry in plan.items()}
    assert bits["feed_forward.w1.weight"] == bits["feed_forward.w3.weight"] == 8
    assert bits["feed_forward.w2.weight"] == bits["conv.in_proj.weight"] == 4


def test_npu_int4_puts_only_experts_in_4_bits_where_there_are_any() -> None:
    plan = npu.plan(MOE, "int4")
    for weight in MOE:
        if weight.role == "projection":
            assert plan[weight.name].bits == 8, weight.name
        if weight.role == "expert":
            assert plan[weight.name].bits == 4
        if weight.role in ("router", "bias"):
            assert plan[weight.name].bits == 32


def test_gpu_has_experts_in_4_bits_whatever_is_asked() -> None:
    plan = ov.plan_for_gpu(MOE, "int8")
    for weight in MOE:
        if weight.role == "expert":
            assert plan[weight.name].bits == 4
        elif weight.role == "projection":
            assert plan[weight.name].bits == 8
    assert ov.plan(MOE, "int8") != plan


def test_odd_width_is_refused_in_4_bits() -> None:
    weight = WeightSpec("odd.weight", (8, 33), "projection")
    with pytest.raises(ExportError, match=r"odd\.weight is 33 wide"):
        npu.plan([weight], "int4")
    assert npu.plan([weight], "int8")["odd.weight"].group == 33


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (4608, (1536, 3072)),
        (8192, (2752, 5440)),
        (11776, (3904, 7872)),
        (192, (64, 128)),
        (64, (64,)),
    ],
)
def test_feed_forward_is_cut_at_a_third(width: int, parts: tuple[int, ...]) -> None:
    assert choose_parts(width) == parts
    assert sum(parts) == width
