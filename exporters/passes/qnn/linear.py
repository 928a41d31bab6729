"""lfm2::Linear -> MatMul over a weight [in, out]: onnxruntime-qnn makes FullyConnected of it."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.qnn.weights import linear_weight


def lower_linear(draft: Draft) -> None:
    """Lower every projection on its own: joined ones would share a range of activations."""
    for node in draft.find("Linear"):
        x, weight = node.inputs
        rewriter = Rewriter(draft, node)
        rewriter.finish(project(rewriter, x, name_of(weight)))


def project(rewriter: Rewriter, x: ir.Value | None, name: str) -> ir.Value:
    """x [..., K] by the projection of that name -> [..., N]."""
    y: ir.Value = rewriter.op("MatMul", [x, linear_weight(rewriter.draft, rewriter.node, name)])
    return y
