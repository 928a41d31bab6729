"""lfm2::Experts -> all experts over all tokens, weighted: what the plugins turn into gathers.

OpenVINO's CPU plugin folds this very form (Tile, Reshape, three batched products with weights
[E, out, in] turned at run time, Reshape, times the routing, ReduceSum) into GatherMatmul
nodes, which multiply only the chosen experts. A product with turned weights, or without the
second Reshape, stays dense: it computes every expert. Seen with OpenVINO 2026.4.1; the
numbers are the same either way, so a test counts the nodes.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.ov.norm import constant
from exporters.passes.ov.weights import expert_weight
from lfm2_deploy.config import NORM_EPS, MoeConfig


def lower_experts(draft: Draft) -> None:
    """Lower every mixture of experts."""
    for node in draft.find("Experts"):
        assert draft.config.moe is not None
        _lower(Rewriter(draft, node), draft.config.moe)


def _lower(rewriter: Rewriter, moe: MoeConfig) -> None:
    x, scores, probabilities = rewriter.node.inputs[:3]
    tokens = _flatten_router(rewriter.draft, x, probabilities)
    prefix = name_of(rewriter.node.inputs[3]).removesuffix(".0.w1.weight")
    op, ints = rewriter.op, rewriter.ints
    experts, hidden = moe.num_experts, rewriter.draft.config.hidden_size
    tiled = op("Tile", [tokens, ints(experts, 1)])
    batched = op("Reshape", [tiled, ints(experts, -1, hidden)])
    gate, up, down = (
        expert_weight(
            rewriter,
            f"{prefix}.{part}",
            [[f"{prefix}.{expert}.{part}.weight"] for expert in range(experts)],
        )
        for part in ("w1", "w3", "w2")
    )
    gated = _product(rewriter, batched, gate)
    gated = op("Mul", [gated, op("Sigmoid", [gated])])
    y = _product(rewriter, op("Mul", [gated, _product(rewriter, batched, up)]), down)
    shape = op("Shape", [x])
    spread = op("Concat", [ints(experts), shape], axis=0)
    y = op("Reshape", [y, spread])
    y = op("Mul", [y, _routing(rewriter, moe, scores, probabilities, shape)])
    rewriter.finish(op("ReduceSum", [y, ints(0)], keepdims=0))


def _flatten_router(draft: Draft, x: ir.Value | None, probabilities: ir.Value | None) -> ir.Value:
    """Let the router, and so all after it, read rows of tokens [B*S, H]; returns these.

    OpenVINO's GPU plugin recognises a router by MatMul, Sigmoid, Add, TopK and GatherElements
    one after another, with no Reshape in between. Read in its sources, not run.
    """
    assert probabilities is not None
    sigmoid = probabilities.producer()
    assert sigmoid is not None
    assert sigmoid.inputs[0] is not None
    linear = sigmoid.inputs[0].producer()
    assert linear is not None
    rewriter = Rewriter(draft, linear)
    tokens: ir.Value = rewriter.op("Reshape", [x, rewriter.ints(-1, draft.config.hidden_size)])
    linear.replace_input_with(0, tokens)
    return tokens


def _product(rewriter: Rewriter, x: ir.Value, weight: ir.Value) -> ir.Value:
    turned = rewriter.op("Transpose", [weight], perm=[0, 2, 1])
    y: ir.Value = rewriter.op("MatMul", [x, turned])
    return y


def _routing(
    rewriter: Rewriter,
    moe: MoeConfig,
    scores: ir.Value | None,
    probabilities: ir.Value | None,
    shape: ir.Value,
) -> ir.Value:
    """From scores and probabilities [B*S, E]: each expert's weight for each token, float32
    [E, B, S, 1], and 0 where it was not chosen."""
    op, ints = rewriter.op, rewriter.ints
    _, index = op("TopK", [scores, ints(moe.num_experts_per_tok)], outputs=2, axis=-1)
    chosen = op("GatherElements", [probabilities, index], axis=-1)
    if moe.norm_topk_prob:
        total = op("ReduceSum", [chosen, ints(-1)], keepdims=1)
        chosen = op("Div", [chosen, op("Add", [total, constant(rewriter, NORM_EPS)])])
    if moe.routed_scaling_factor != 1.0:
        chosen = op("Mul", [chosen, constant(rewriter, moe.routed_scaling_factor)])
    nothing = op("Mul", [probabilities, constant(rewriter, 0.0)])
    dense = op("ScatterElements", [nothing, index, chosen], axis=-1)
    turned = op("Transpose", [dense], perm=[1, 0])
    leading = op("Slice", [shape, ints(0), ints(2), ints(0)])
    size = op("Concat", [ints(moe.num_experts), leading, ints(1)], axis=0)
    weights: ir.Value = op("Reshape", [turned, size])
    return weights
