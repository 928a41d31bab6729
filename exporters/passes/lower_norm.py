"""lfm2::RMSNorm -> SimplifiedLayerNormalization, fused with the residual sum before it."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, attribute, name_of
from exporters.passes.weights import plain_weight


def lower_norm(draft: Draft) -> None:
    """Lower every norm; where its input is a residual sum, the kernel does both."""
    for node in draft.find("RMSNorm"):
        x, weight = node.inputs
        assert x is not None
        rewriter = Rewriter(draft, node)
        gamma, epsilon = plain_weight(draft, name_of(weight)), attribute(node, "epsilon")
        residual = x.producer()
        if residual is not None and residual.op_type == "Add" and not x.is_graph_output():
            _fuse_residual(rewriter, residual, gamma, epsilon)
        else:
            rewriter.finish(
                rewriter.op(
                    "SimplifiedLayerNormalization", [x, gamma],
                    axis=-1, epsilon=epsilon, stash_type=1,
                )
            )  # fmt: skip


def _fuse_residual(rewriter: Rewriter, residual: ir.Node, gamma: ir.Value, epsilon: float) -> None:
    left, right = residual.inputs
    normed, mean, inverse, total = rewriter.op(
        "SkipSimplifiedLayerNormalization", [left, right, gamma],
        domain=MICROSOFT, outputs=4, epsilon=epsilon,
    )  # fmt: skip
    # Left out: a node that names its statistics is the CPU's on DirectML, read or not
    # (QuerySkipLayerNormalization in DmlOperatorSkipLayerNormalization.cpp, onnxruntime 1.30).
    mean.name = inverse.name = ""
    rewriter.finish(normed)
    residual.outputs[0].replace_all_uses_with(total)
    rewriter.draft.graph.remove(residual, safe=True)
