"""OpenVINO's CPU and GPU: one stateful graph of any length, which openvino-genai reads, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exporters.openvino_ir import IR_FILE, write_ir
from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.lower_parameters import lower_parameters
from exporters.passes.ov.conv import lower_stateful_conv
from exporters.passes.ov.embedding import lower_embedding
from exporters.passes.ov.experts import lower_experts
from exporters.passes.ov.linear import join_linear
from exporters.passes.ov.norm import lower_norm
from exporters.passes.ov.stateful_attention import lower_stateful_attention
from exporters.passes.ov.stateful_frame import (
    rename_states,
    stateful_frame,
)
from exporters.passes.weights import round_half
from exporters.quantize.plan import (
    PRECISIONS,
    Precision,
    TensorPlan,
    plan_in_groups,
)
from exporters.targets.notes import note_half_precision
from exporters.targets.target import Part, Target
from lfm2_deploy.weights import WeightSpec

# Operators up to 23: Attention, which OpenVINO imports as its own.
OPSET = 23

PASSES = (
    clean_up,
    stateful_frame,
    lower_embedding,
    lower_norm,
    lower_stateful_conv,
    lower_stateful_attention,
    lower_experts,
    join_linear,
    lower_parameters,
    rename_states,
    remove_unused,
    share_common,
    remove_unused,
)


def plan(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
    """int4 in groups of 128, which NPUW takes as well; int8 and tables by row."""
    return plan_in_groups(weights, precision, int4_group=128)


def plan_for_gpu(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
    """As `plan`, with experts in 4 bits also where int8 was asked for."""
    found = dict(plan(weights, precision))
    experts = [weight for weight in weights if weight.role == "expert"]
    if precision == "int8":
        for name, entry in plan(experts, "int4").items():
            # github.com/openvinotoolkit/openvino/issues/38211, open with 2026.4.1.
            found[name] = replace(entry, reason="GPUs have no fused experts in 8 bits")
    return found


def _make_target(name: str) -> Target:
    return Target(
        name=name,
        runtime="openvino",
        precisions=PRECISIONS,
        make_parts=lambda wanted: (Part("model", PASSES, IR_FILE),),
        finish=write_ir,
        opsets=(("", OPSET),),
        ir_version=10,
        plan=plan,
        packages=("openvino",),
        groups=(0, 128),
        expert_groups=(0, 128),
        scale_bytes=2,
        rounding=lambda precision: round_half,
    )


OPENVINO_CPU = _make_target("openvino-cpu")
IGPU = replace(_make_target("igpu"), plan=plan_for_gpu, notes=note_half_precision, groups=())
