"""lfm2::Experts -> QMoE on WebGPU; experts in floats are computed densely.

The kernel knows softmax over its scores alone and refuses `router_weights` ("not yet
implemented on WebGPU", onnxruntime-ep-webgpu 0.4.0), so it is given log p for the chosen
experts and -10000 for the rest: softmax(log p) is p over its sum. There is no MoE in floats.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.gpu.linear import multiply_packed
from exporters.passes.gpu.plain_experts import lower_dense_experts
from exporters.passes.gpu.routing import choose, narrow, only_chosen, weigh
from exporters.passes.lower_experts import SWIGLU, UNCHOSEN, quantized_experts
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.config import MoeConfig


def lower_fused_experts(draft: Draft) -> None:
    """Lower every mixture of experts."""
    for node in draft.find("Experts"):
        assert draft.config.moe is not None
        name = name_of(node.inputs[3])
        plan, prefix = draft.plan[name], name.removesuffix(".0.w1.weight")
        if not plan.is_quantized:
            lower_dense_experts(multiply_packed)(draft)
            return
        rewriter = Rewriter(draft, node)
        rewriter.finish(_lower(rewriter, draft.config.moe, plan, prefix))


def _lower(rewriter: Rewriter, moe: MoeConfig, plan: TensorPlan, prefix: str) -> ir.Value:
    x, _, probabilities = rewriter.node.inputs[:3]
    op, chosen = rewriter.op, choose(rewriter, moe)
    logs = only_chosen(rewriter, op("Log", [probabilities]), chosen, UNCHOSEN)
    logs = op("Reshape", [narrow(rewriter, logs), rewriter.ints(-1, moe.num_experts)])
    fc1, fc1_scales, fc2, fc2_scales = quantized_experts(rewriter.draft, moe, plan, prefix)
    y = op(
        "QMoE", [x, logs, fc1, fc1_scales, None, fc2, fc2_scales],
        domain=MICROSOFT,
        k=moe.num_experts_per_tok,
        expert_weight_bits=plan.bits,
        block_size=plan.group,
        normalize_routing_weights=1,
        **SWIGLU,
    )  # fmt: skip
    # The kernel divided by the sum; LFM2 divides by the sum plus a little, or not at all.
    scaled: ir.Value = op("Mul", [y, weigh(rewriter, moe, chosen.total, chosen)])
    return scaled
