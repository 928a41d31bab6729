"""lfm2::RMSNorm -> RMSNormalization, which HTP has: squares stay out of the graph.

Spelled out, x^2 would need a range of its own in 16 bits, and overflow float16 from 256 on.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, attribute, name_of
from exporters.passes.weights import plain_weight


def lower_norm(draft: Draft) -> None:
    """Lower every norm."""
    for node in draft.find("RMSNorm"):
        x, weight = node.inputs
        rewriter = Rewriter(draft, node)
        gamma = plain_weight(draft, name_of(weight))
        rewriter.finish(rms_norm(rewriter, x, gamma, attribute(node, "epsilon")))


def rms_norm(rewriter: Rewriter, x: ir.Value | None, gamma: ir.Value, epsilon: float) -> ir.Value:
    """x * gamma / sqrt(mean(x^2) + epsilon) over the last axis."""
    y: ir.Value = rewriter.op("RMSNormalization", [x, gamma], axis=-1, epsilon=epsilon)
    return y
