"""lfm2::Experts -> QMoE, or MoE where the experts are floats.

Both kernels want gate and up rows interleaved. Both choose experts by the K largest
of a score; they differ in how the chosen are weighed:

- QMoE takes the weights apart from the scores (`router_weights`).
- MoE knows softmax over its scores alone, so it is given log p for the chosen experts
  and -10000 for the rest: softmax(log p) is p over its sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import (
    INT8_ACTIVATIONS,
    encoder_for,
    interleave,
    measure_unless_recovered,
    to_float,
)
from exporters.quantize.losses import Sums, measure_packed
from exporters.quantize.plan import TensorPlan
from exporters.weight_book import Array, Slot
from lfm2_deploy.config import NORM_EPS, MoeConfig

UNCHOSEN = -10000.0
SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,  # interleaved, the only layout the CPU provider has
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


def lower_experts(draft: Draft) -> None:
    """Lower every mixture of experts as its weights' plan says."""
    for node in draft.find("Experts"):
        assert draft.config.moe is not None
        name = name_of(node.inputs[3])
        plan, prefix = draft.plan[name], name.removesuffix(".0.w1.weight")
        rewriter = Rewriter(draft, node)
        lower = _lower_quantized if plan.is_quantized else _lower_float
        rewriter.finish(lower(rewriter, draft.config.moe, plan, prefix))


def _lower_quantized(rewriter: Rewriter, moe: MoeConfig, plan: TensorPlan, prefix: str) -> ir.Value:
    x, scores, probabilities = rewriter.node.inputs[:3]
    _, total = _chosen(rewriter, moe, scores, probabilities)
    if moe.norm_topk_prob:
        total = rewriter.op("Add", [total, _float(rewriter, NORM_EPS)])
        probabilities = rewriter.op("Div", [probabilities, total])
    probabilities = _scale(rewriter, moe, probabilities)
    flat = rewriter.ints(-1, moe.num_experts)
    scores = rewriter.op("Reshape", [scores, flat])
    weights = rewriter.op("Reshape", [probabilities, flat])
    fc1, fc1_scales, fc2, fc2_scales = quantized_experts(rewriter.draft, moe, plan, prefix)
    y: ir.Value = rewriter.op(
        "QMoE",
        [x, scores, fc1, fc1_scales, None, fc2, fc2_scales, *[None] * 7, weights],
        domain=MICROSOFT,
        k=moe.num_experts_per_tok,
        expert_weight_bits=plan.bits,
        block_size=plan.group,
        normalize_routing_weights=0,
        # 0 is the raw layout; unset, CUDA takes the bytes for its own prepacked one.
        weights_prepacked=0,
        accuracy_level=INT8_ACTIVATIONS,
        **SWIGLU,
    )
    return y


def _lower_float(rewriter: Rewriter, moe: MoeConfig, plan: TensorPlan, prefix: str) -> ir.Value:
    x, scores, probabilities = rewriter.node.inputs[:3]
    index, total = _chosen(rewriter, moe, scores, probabilities)
    chosen = rewriter.op("GatherElements", [probabilities, index], axis=-1)
    nothing = rewriter.op("Mul", [scores, _float(rewriter, 0.0)])
    nothing = rewriter.op("Add", [nothing, _float(rewriter, UNCHOSEN)])
    logs = rewriter.op("ScatterElements", [nothing, index, rewriter.op("Log", [chosen])], axis=-1)
    logs = rewriter.op("Reshape", [logs, rewriter.ints(-1, moe.num_experts)])
    fc1, fc2 = _float_experts(rewriter, moe, plan, prefix)
    y = rewriter.op(
        "MoE", [x, logs, fc1, None, fc2], domain=MICROSOFT,
        k=moe.num_experts_per_tok, normalize_routing_weights=1, **SWIGLU,
    )  # fmt: skip
    # The kernel divided by the sum; LFM2 divides by the sum plus a little, or not at all.
    rest = total
    if moe.norm_topk_prob:
        rest = rewriter.op("Div", [total, rewriter.op("Add", [total, _float(rewriter, NORM_EPS)])])
    scaled: ir.Value = rewriter.op("Mul", [y, _scale(rewriter, moe, rest)])
    return scaled


def _chosen(
    rewriter: Rewriter, moe: MoeConfig, scores: ir.Value | None, probabilities: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Index [B, S, K] of the chosen experts, and the sum [B, S, 1] of their probabilities."""
    top = [scores, rewriter.ints(moe.num_experts_per_tok)]
    _, index = rewriter.op("TopK", top, outputs=2, axis=-1)
    chosen = rewriter.op("GatherElements", [probabilities, index], axis=-1)
    total = rewriter.op("ReduceSum", [chosen, rewriter.ints(-1)], keepdims=1)
    return index, total


def _scale(rewriter: Rewriter, moe: MoeConfig, x: ir.Value | None) -> ir.Value | None:
    if moe.routed_scaling_factor == 1.0:
        return x
    scaled: ir.Value = rewriter.op("Mul", [x, _float(rewriter, moe.routed_scaling_factor)])
    return scaled


def _float(rewriter: Rewriter, value: float) -> ir.Value:
    constant: ir.Value = rewriter.op("Constant", [], value_float=value)
    return constant


def quantized_experts(
    draft: Draft, moe: MoeConfig, plan: TensorPlan, prefix: str
) -> tuple[ir.Value, ...]:
    """QMoE's fc1 [E, 2I, H * bits / 8], gate and up rows in turn, and fc2 [E, H, I * bits / 8],
    uint8, each followed by its scales."""
    experts, wide, hidden = moe.num_experts, moe.moe_intermediate_size, draft.config.hidden_size
    values: list[ir.Value] = []
    is_new = f"{prefix}.fc1.q{plan.bits}" not in draft.book.declared
    for part, rows, columns in (("fc1", 2 * wide, hidden), ("fc2", hidden, wide)):
        names = f"{prefix}.{part}.q{plan.bits}", f"{prefix}.{part}.scales"
        packed_shape = (experts, rows, columns * plan.bits // 8)
        values.append(draft.book.declare(draft.graph, names[0], packed_shape, ir.DataType.UINT8))
        scales_shape = (experts, rows, columns // plan.group)
        values.append(draft.book.declare(draft.graph, names[1], scales_shape, draft.dtype))
    quantized = encoder_for(draft.dtype, plan)

    def encode(gate: Array, up: Array, down: Array) -> tuple[Array, ...]:
        return *quantized(interleave(gate, up)), *quantized(down)

    def measure(sources: Sequence[Array], kept: Sequence[Array]) -> list[Sums]:
        gate, up, down = sources
        first, first_scales, second, second_scales = kept
        return [
            measure_packed(gate, first[0::2], first_scales[0::2], plan.bits),
            measure_packed(up, first[1::2], first_scales[1::2], plan.bits),
            measure_packed(down, second, second_scales, plan.bits),
        ]

    measured = measure_unless_recovered(plan, measure)
    for expert in range(experts if is_new else 0):
        slots = [Slot(name_of(value), expert) for value in values]
        draft.book.fill(expert_sources(prefix, expert), encode, *slots, measure=measured)
    return tuple(values)


def _float_experts(
    rewriter: Rewriter, moe: MoeConfig, plan: TensorPlan, prefix: str
) -> tuple[ir.Value, ir.Value]:
    draft, experts = rewriter.draft, moe.num_experts
    wide, hidden = moe.moe_intermediate_size, draft.config.hidden_size
    dtype = ir.DataType.FLOAT if plan.bits == 32 else ir.DataType.FLOAT16
    fc1, fc2 = f"{prefix}.fc1.fp{plan.bits}", f"{prefix}.fc2.fp{plan.bits}"
    values = [
        draft.book.declare(draft.graph, fc1, (experts, 2 * wide, hidden), dtype),
        draft.book.declare(draft.graph, fc2, (experts, hidden, wide), dtype),
    ]

    def encode(gate: Array, up: Array, down: Array) -> tuple[Array, ...]:
        joined = interleave(gate, up)
        return to_float(joined, dtype, fc1), to_float(down, dtype, fc2)

    for expert in range(experts):
        sources = expert_sources(prefix, expert)
        draft.book.fill(sources, encode, Slot(fc1, expert), Slot(fc2, expert))
    if plan.bits == 16:
        values = [rewriter.op("Cast", [value], to=ir.DataType.FLOAT) for value in values]
    return values[0], values[1]


def expert_sources(prefix: str, expert: int) -> list[str]:
    """Names of an expert's gate, up and down matrices."""
    return [f"{prefix}.{expert}.{w}.weight" for w in ("w1", "w3", "w2")]


def layer_of(node: ir.Node) -> int:
    """Of an Experts node, the layer's number, from its weights' names."""
    found = re.search(r"\.layers\.(\d+)\.", name_of(node.inputs[3]))
    assert found is not None
    return int(found[1])


def next_sum(node: ir.Node) -> tuple[ir.Node, ir.Value]:
    """The node that adds to what an Experts node gives, and what it adds."""
    (add,) = (use.node for use in node.outputs[0].uses())
    residual = next(v for v in add.inputs if v is not node.outputs[0])
    assert residual is not None
    return add, residual
