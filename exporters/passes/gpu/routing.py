"""What experts need to know of a token: which are chosen, and how much each weighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.draft import Rewriter
from exporters.passes.gpu.constants import scalar
from lfm2_deploy.config import NORM_EPS, MoeConfig

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chosen experts of each token, best first; probabilities are float32.

    Args:
        least: [1, S, 1] the lowest score that was chosen.
        index: int64 [1, S, K].
        probabilities: [1, S, K].
        total: [1, S, 1] their sum.
    """

    least: ir.Value
    index: ir.Value
    probabilities: ir.Value
    total: ir.Value


def choose(rewriter: Rewriter, moe: MoeConfig) -> Chosen:
    """Pick the K best scored experts of the node's tokens."""
    scores, probabilities = rewriter.node.inputs[1:3]
    op, ints, count = rewriter.op, rewriter.ints, moe.num_experts_per_tok
    best, index = op("TopK", [scores, ints(count)], outputs=2, axis=-1)
    least = op("Slice", [best, ints(count - 1), ints(count), ints(2)])
    chosen = op("GatherElements", [probabilities, index], axis=-1)
    return Chosen(least, index, chosen, op("ReduceSum", [chosen, ints(-1)], keepdims=1))


def weigh(rewriter: Rewriter, moe: MoeConfig, x: ir.Value | None, chosen: Chosen) -> ir.Value:
    """Probabilities of any shape [1, S, *] -> weights, in the type that the graph computes in."""
    op = rewriter.op
    if moe.norm_topk_prob:
        x = op("Div", [x, op("Add", [chosen.total, scalar(rewriter, NORM_EPS, _FLOAT)])])
    if moe.routed_scaling_factor != 1.0:
        x = op("Mul", [x, scalar(rewriter, moe.routed_scaling_factor, _FLOAT)])
    assert x is not None
    return narrow(rewriter, x)


def only_chosen(
    rewriter: Rewriter, x: ir.Value | None, chosen: Chosen, otherwise: float
) -> ir.Value:
    """x [1, S, E] where an expert is chosen, and another number where it is not.

    By comparison with the least score chosen, so that of experts that score alike there may be
    more than K: for a kernel that picks K itself.
    """
    scores = rewriter.node.inputs[1]
    mask = rewriter.op("GreaterOrEqual", [scores, chosen.least])
    y: ir.Value = rewriter.op("Where", [mask, x, scalar(rewriter, otherwise, _FLOAT)])
    return y


def spread(rewriter: Rewriter, moe: MoeConfig, weights: ir.Value, chosen: Chosen) -> ir.Value:
    """Weights of the chosen experts [1, S, K] -> of all [1, S, E]; the others weigh nothing.

    By products with rows of zeros and a one, which are gathered: DirectML has no ScatterElements,
    and onnxruntime-webgpu 1.27.0 neither compares nor casts int64.
    """
    draft, op, ints = rewriter.draft, rewriter.op, rewriter.ints
    rows = np.eye(moe.num_experts, dtype=draft.dtype.numpy())
    every = draft.book.constant(draft.graph, f"experts.{moe.num_experts}", rows)
    row = op("Gather", [every, chosen.index], axis=0)
    parts = op("Mul", [op("Unsqueeze", [weights, ints(-1)]), row])
    y: ir.Value = op("ReduceSum", [parts, ints(-2)], keepdims=0)
    return y


def narrow(rewriter: Rewriter, x: ir.Value) -> ir.Value:
    """float32 -> the type that the graph computes in."""
    if rewriter.draft.dtype == _FLOAT:
        return x
    y: ir.Value = rewriter.op("Cast", [x], to=rewriter.draft.dtype)
    return y
