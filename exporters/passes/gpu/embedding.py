"""lfm2::Embedding -> Gather, over the head's own bytes where these are integers."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.gpu.constants import scalar
from exporters.passes.weights import float_weight, quantized_table, quantized_weight


def lower_embedding(draft: Draft) -> None:
    """Lower the embedding by GatherBlockQuantized; there is no padding."""
    for node in draft.find("Embedding"):
        ids, weight = node.inputs
        rewriter, name = Rewriter(draft, node), name_of(weight)
        plan = draft.plan[name]
        if not plan.is_quantized:
            x = rewriter.op("Gather", [float_weight(rewriter, name), ids], axis=0)
        else:
            table, scales = quantized_table(draft, name)
            x = rewriter.op(
                "GatherBlockQuantized", [table, ids, scales], domain=MICROSOFT,
                bits=plan.bits, block_size=plan.group, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        rewriter.finish(x)


def lower_embedding_plainly(draft: Draft) -> None:
    """Lower the embedding by standard operators: rows of bytes, and then their meaning.

    DirectML has no GatherBlockQuantized. Tables are kept in 8 bits in every integer precision,
    so a byte is a number.
    """
    for node in draft.find("Embedding"):
        ids, weight = node.inputs
        rewriter, name = Rewriter(draft, node), name_of(weight)
        plan = draft.plan[name]
        if not plan.is_quantized:
            x = rewriter.op("Gather", [float_weight(rewriter, name), ids], axis=0)
        else:
            assert plan.bits == 8
            x = _gather_bytes(rewriter, ids, name)
        rewriter.finish(x)


def _gather_bytes(rewriter: Rewriter, ids: ir.Value | None, name: str) -> ir.Value:
    draft, op = rewriter.draft, rewriter.op
    packed, scales, (_, columns) = quantized_weight(draft, name)
    rows = op("Cast", [op("Gather", [packed, ids], axis=0)], to=draft.dtype)
    steps = op("Unsqueeze", [op("Gather", [scales, ids], axis=0), rewriter.ints(-1)])
    levels = op("Sub", [rows, scalar(rewriter, 128.0)])
    x: ir.Value = op("Reshape", [op("Mul", [levels, steps]), rewriter.ints(0, 0, columns)])
    return x
