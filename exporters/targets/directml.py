"""DirectML, through onnxruntime-directml or Windows ML: any GPU with Direct3D 12, on Windows.

Two graphs over the same weights: `prefill` for a whole prompt, padded to one of few lengths, and
`decode` for one token. DirectML compiles an operator anew where a shape is not that of its first
call, and joins operators to one only where shapes are fixed (MLOperatorAuthorImpl.cpp and
GraphPartitioner.cpp of onnxruntime 1.30), so each length is a session of its own.

DirectML has neither QMoE nor a scatter. `decode` gathers the bytes of the experts that its token
chose; `prefill` computes all experts for all tokens, which is the fastest way for few. For long
prompts there are parts for a host that routes. docs/gpu.md counts what each costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exporters.draft import MICROSOFT
from exporters.passes.gpu.attention import lower_attention_apart
from exporters.passes.gpu.conv import lower_padded_conv, lower_plain_conv
from exporters.passes.gpu.embedding import lower_embedding_plainly
from exporters.passes.gpu.frame import bind_layers, bind_weights, take_one_token
from exporters.passes.gpu.linear import lower_linear, multiply_with_zero_points
from exporters.passes.gpu.plain_experts import lower_dense_experts, lower_gathered_experts
from exporters.passes.gpu.routed_experts import leave_experts, leave_sum
from exporters.passes.gpu.segments import leave_segment
from exporters.passes.lower_norm import lower_norm
from exporters.quantize.plan import (
    PRECISIONS,
    Precision,
    TensorPlan,
    plan_tensors,
)
from exporters.targets.gpu import FIRST, FRAME, LAST, compute_dtype, finish, rounding
from exporters.targets.target import Part, Pass, Target, Wanted
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import DECODE, EXPERTS, PREFILL, SUM, name_segment
from lfm2_deploy.gpu_graphs import FIRST as FIRST_PART
from lfm2_deploy.gpu_graphs import LAST as LAST_PART
from lfm2_deploy.weights import WeightSpec

# Kernels match the exact version of an operator: with 22 Conv has none, with 23 Reshape and Cast
# (docs/lint.md tells where this is read).
OPSET = 21
# Buffers of keys and values are of full length from the start.
CONTEXT = 4096
# MatMulNBits knows no smaller one.
_SMALLEST_GROUP = 16
_MULTIPLY = multiply_with_zero_points


def make_parts(wanted: Wanted) -> tuple[Part, ...]:
    """A graph for prompts and one for single tokens; of a mixture also the parts of one."""
    prefill = _list_passes(lower_padded_conv, lower_dense_experts(_MULTIPLY))
    decode = _list_passes(lower_plain_conv, lower_gathered_experts(_MULTIPLY))
    return (
        _part(PREFILL, *prefill, bind_weights),
        _part(DECODE, *decode, bind_weights, take_one_token),
        *(_list_routed_parts(wanted.config) if wanted.config.moe_layers else ()),
    )


def _list_passes(conv: Pass, experts: Pass) -> tuple[Pass, ...]:
    return (
        *FIRST,
        lower_embedding_plainly,
        conv,
        lower_attention_apart,
        experts,
        lower_linear(_MULTIPLY),
        *LAST,
    )


def _part(name: str, *passes: Pass) -> Part:
    return Part(name, passes, f"{name}.onnx")


def _list_routed_parts(config: Lfm2Config) -> tuple[Part, ...]:
    """The parts of a long prompt, after the graph that declares all their weights."""
    layers = config.moe_layers
    kinds: dict[str, list[int]] = {}
    for layer in layers[1:]:
        kinds.setdefault(config.layer_types[layer], []).append(layer)
    segments = (
        _part(name_segment(kind), *_list_segment_passes(alike[0] - 1, alike[0]), bind_layers(alike))
        for kind, alike in kinds.items()
    )
    return (
        _part(FIRST_PART, *_list_segment_passes(None, layers[0]), bind_weights),
        *segments,
        _part(LAST_PART, *_list_segment_passes(layers[-1], None), bind_weights),
        _part(EXPERTS, *FRAME, leave_experts(_MULTIPLY, layers[0]), *LAST, bind_layers(layers)),
        _part(SUM, *FRAME, leave_sum(layers[0]), *LAST),
    )


def _list_segment_passes(start: int | None, end: int | None) -> tuple[Pass, ...]:
    return (
        *FRAME,
        leave_segment(start, end),
        lower_norm,
        lower_embedding_plainly,
        lower_padded_conv,
        lower_attention_apart,
        lower_linear(_MULTIPLY),
        *LAST,
    )


def plan(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
    """As for CPUs, with an even number of groups in each row of 8 bits.

    MatMulNBits takes its zero points' rows for even ones (DmlOperatorMatMulNBits.cpp of
    onnxruntime 1.30).
    """
    found = plan_tensors(weights, precision)
    return {weight.name: _make_even(weight, found[weight.name]) for weight in weights}


def _make_even(weight: WeightSpec, entry: TensorPlan) -> TensorPlan:
    # An expert's three matrices share one group: their widths are each other's heights.
    sizes = weight.shape if weight.role == "expert" else weight.shape[-1:]
    group = entry.group
    while entry.is_quantized and entry.bits == 8 and any(size // group % 2 for size in sizes):
        group //= 2
        if group < _SMALLEST_GROUP:
            raise ExportError(
                f"{weight.name} is {' x '.join(map(str, weight.shape))}, which DirectML cannot "
                "take in 8 bits; export with --precision fp16"
            )
    return replace(entry, group=group)


DIRECTML = Target(
    name="directml",
    runtime="directml",
    precisions=PRECISIONS,
    make_parts=make_parts,
    finish=finish,
    opsets=(("", OPSET), (MICROSOFT, 1)),
    ir_version=10,
    plan=plan,
    context_length=CONTEXT,
    state_dtype=compute_dtype,
    compute_dtype=compute_dtype,
    scale_bytes=2,
    rounding=rounding,
)
