"""lfm2::RMSNorm -> the arithmetic that OpenVINO's RMSFusion recognises."""

from __future__ import annotations

import numpy as np
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
    square = rewriter.op("Pow", [x, constant(rewriter, 2.0)])
    mean = rewriter.op("ReduceMean", [square, rewriter.ints(-1)], keepdims=1)
    root = rewriter.op("Sqrt", [rewriter.op("Add", [mean, constant(rewriter, epsilon)])])
    scaled = rewriter.op("Mul", [x, rewriter.op("Div", [constant(rewriter, 1.0), root])])
    y: ir.Value = rewriter.op("Mul", [scaled, gamma])
    return y


def constant(rewriter: Rewriter, value: float) -> ir.Value:
    """A float32 scalar, declared once for each value."""
    draft = rewriter.draft
    return draft.book.constant(draft.graph, f"float.{value!r}", np.array(value, np.float32))
