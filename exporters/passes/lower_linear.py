"""lfm2::Linear -> MatMulNBits, or a product with the weight as the checkpoint lays it out."""

from __future__ import annotations

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import INT8_ACTIVATIONS, float_weight, quantized_weight


def lower_linear(draft: Draft) -> None:
    """Lower every projection as its weight's plan says."""
    for node in draft.find("Linear"):
        x, weight = node.inputs
        rewriter, name = Rewriter(draft, node), name_of(weight)
        plan = draft.plan[name]
        if not plan.is_quantized:
            # transB reads [out, in] as stored, so a tied head needs no second copy.
            stored = float_weight(rewriter, name)
            y = rewriter.op("FusedMatMul", [x, stored], domain=MICROSOFT, transB=1)
        else:
            packed, scales, (rows, columns) = quantized_weight(draft, name)
            y = rewriter.op(
                "MatMulNBits", [x, packed, scales], domain=MICROSOFT,
                K=columns, N=rows, bits=plan.bits, block_size=plan.group,
                accuracy_level=INT8_ACTIVATIONS,
            )  # fmt: skip
        rewriter.finish(y)
