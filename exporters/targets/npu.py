"""Intel NPUs through OpenVINO: two graphs of fixed shape for the NPU, small ones beside it.

    embed     CPU   token ids -> embeddings
    prefill   NPU   a chunk of a prompt
    decode    NPU   one token
    head      CPU   hidden states -> logits

and for a mixture of experts, whose prefill and decode graphs are cut at each expert layer:

    routers   CPU   in float32, since rounding changes which expert runs
    experts   NPU   each expert a graph, called with the tokens that chose it; or on GPU or
                    CPU all experts of a layer in one graph

Why each choice is as it is: docs/npu.md, with what Intel's compiler estimates for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.lower_parameters import lower_parameters
from exporters.passes.ov.conv import lower_static_conv
from exporters.passes.ov.cut_experts import (
    cut_segments,
    only_experts,
    only_routers,
    only_whole_experts,
)
from exporters.passes.ov.embedding import lower_embedding
from exporters.passes.ov.experts import lower_experts
from exporters.passes.ov.feed_forward import choose_parts, cut_feed_forward
from exporters.passes.ov.linear import join_linear, lower_linear
from exporters.passes.ov.norm import lower_norm
from exporters.passes.ov.static_attention import lower_static_attention
from exporters.passes.ov.static_frame import (
    only_embedding,
    only_head,
    static_frame,
)
from exporters.passes.weights import round_half
from exporters.quantize.plan import PRECISIONS, Precision, TensorPlan, plan_in_groups
from exporters.targets.notes import note_half_precision
from exporters.targets.target import Part, Pass, Target, Wanted, Written
from exporters.weight_book import Array
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.static_graphs import DECODE, EMBED, EXPERTS, HEAD, PREFILL, ROUTERS
from lfm2_deploy.weights import WeightSpec

CHUNK = 128
CONTEXT = 1024
_OPSET = 21
_EDGE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_LAST: tuple[Pass, ...] = (lower_parameters, remove_unused, share_common, remove_unused)


def make_parts(wanted: Wanted) -> tuple[Part, ...]:
    """The graphs of a bundle."""
    dtype = _EDGE[state_dtype(wanted.precision)]
    embed = (clean_up, only_embedding(dtype), lower_embedding)
    parts = [
        _part(EMBED, embed, "cpu"),
        _part(PREFILL, _layers(wanted.config, wanted.chunk, dtype)),
        _part(DECODE, _layers(wanted.config, 1, dtype)),
        _part(HEAD, (clean_up, only_head(dtype), lower_linear), "cpu"),
    ]
    if wanted.config.moe is not None:
        parts += _expert_parts(wanted, dtype)
    return tuple(parts)


def _part(name: str, passes: tuple[Pass, ...], device: str = "target") -> Part:
    return Part(name, (*passes, *_LAST), f"{name}.onnx", device)


def _layers(config: Lfm2Config, steps: int, dtype: ir.DataType) -> tuple[Pass, ...]:
    return (
        clean_up,
        static_frame(steps, dtype),
        *([] if config.moe is None else [cut_segments(steps, dtype)]),
        lower_norm,
        lower_static_conv,
        lower_static_attention,
        cut_feed_forward,
        join_linear,
    )


def _expert_parts(wanted: Wanted, dtype: ir.DataType) -> list[Part]:
    layers = wanted.config.moe_layers
    if wanted.experts != "npu":
        return [
            _part(
                f"{EXPERTS}.{layer}",
                (clean_up, only_whole_experts([layer], dtype), lower_experts, lower_linear),
                wanted.experts,
            )
            for layer in layers
        ]
    routers = _part(ROUTERS, (clean_up, only_routers(dtype), lower_linear), "cpu")
    experts = [
        _part(f"{EXPERTS}.{layer}", (clean_up, only_experts(layer, dtype))) for layer in layers
    ]
    return [routers, *experts]


def state_dtype(precision: Precision) -> str:
    """An NPU computes in float16; float32 serves to compare with the reference elsewhere."""
    return "float32" if precision == "fp32" else "float16"


def plan(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
    """One scale a row: groups make NPU graphs twice as slow.

    Intel's compiler estimates 4 bits to take longer than 8, as they are unpacked. So "int4"
    keeps in 8 bits what costs little: two thirds of a dense feed-forward block, the fastest
    mixture that is no larger than 0.65 of optimum-intel's; and beside experts, which make
    nearly all of the size, everything else.
    """
    found = dict(plan_in_groups(weights, precision, int4_group=0))
    has_experts = any(weight.role == "expert" for weight in weights)
    for weight in weights:
        gates = weight.name.endswith((".feed_forward.w1.weight", ".feed_forward.w3.weight"))
        if precision == "int4" and (gates or (has_experts and weight.role == "projection")):
            found[weight.name] = TensorPlan(
                8, weight.shape[-1], "an NPU unpacks 4 bits slower than it reads 8"
            )
    return found


def round_in_parts(spec: WeightSpec, weight: Array, plan: TensorPlan) -> Array:
    """As `round_half`; of a feed-forward block that is cut, each part has scales of its own."""
    width = weight.shape[-1]
    if not spec.name.endswith(".feed_forward.w2.weight") or plan.group != width:
        return round_half(spec, weight, plan)
    sizes = choose_parts(width)
    parts = np.split(weight, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate(
        [
            round_half(spec, np.ascontiguousarray(part), replace(plan, group=size))
            for part, size in zip(parts, sizes, strict=True)
        ],
        axis=1,
    )


def finish(written: Written) -> None:
    """Nothing is left to do: graphs and weights are what the runtime reads."""


NPU = Target(
    name="npu",
    runtime="openvino",
    precisions=PRECISIONS,
    make_parts=make_parts,
    finish=finish,
    opsets=(("", _OPSET),),
    ir_version=10,
    plan=plan,
    chunk=CHUNK,
    context_length=CONTEXT,
    state_dtype=state_dtype,
    channels_last=True,
    experts=("npu", "gpu", "cpu"),
    compiles=True,
    notes=note_half_precision,
    groups=(0,),
    expert_groups=(0,),
    scale_bytes=2,
    rounding=lambda precision: round_in_parts,
    embeds="always",
)
