"""lfm2::Lengths and lfm2::TakeLast -> counts and gathers.

A padding token is any negative id. Counting ids and mask gives both lengths that a
right-padded batch needs, from the two inputs that every reader already feeds.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter

NEW32, LAST32, LONGEST = "new_lengths_int32", "last_index_int32", "longest"


def lower_lengths(draft: Draft) -> None:
    """Compute past and new lengths, and the forms of them that kernels want."""
    for node in draft.find("Lengths"):
        ids, mask = node.inputs
        rewriter = Rewriter(draft, node)
        axis = rewriter.ints(1)
        real = rewriter.op("GreaterOrEqual", [ids, rewriter.ints(0)])
        ones = rewriter.op("Cast", [real], to=ir.DataType.INT64)
        new = rewriter.op("ReduceSum", [ones, axis], keepdims=0)
        total = rewriter.op("ReduceSum", [mask, axis], keepdims=0)
        past = rewriter.op("Sub", [total, new])
        last = rewriter.op("Sub", [total, rewriter.ints(1)])
        longest = rewriter.op("ReduceMax", [total], keepdims=0)
        for name, value in ((NEW32, new), (LAST32, last), (LONGEST, longest)):
            draft.shared[name] = rewriter.op("Cast", [value], to=ir.DataType.INT32)
        rewriter.finish(past, new)


def lower_take_last(draft: Draft) -> None:
    """Gather each row's last `keep` real positions: [B, S, H] -> [B, K, H]."""
    for node in draft.find("TakeLast"):
        x, new, keep = node.inputs
        rewriter = Rewriter(draft, node)
        row_ends = rewriter.op("Unsqueeze", [new, rewriter.ints(1)])
        starts = rewriter.op("Sub", [row_ends, keep])
        scalar = rewriter.op("Squeeze", [keep, rewriter.ints(0)])
        steps = rewriter.op("Range", [_scalar(rewriter, 0), scalar, _scalar(rewriter, 1)])
        # A row shorter than `keep` repeats its first position rather than reading another row.
        index = rewriter.op("Max", [rewriter.op("Add", [starts, steps]), rewriter.ints(0)])
        index = rewriter.op("Unsqueeze", [index, rewriter.ints(2)])
        rewriter.finish(rewriter.op("GatherND", [x, index], batch_dims=1))


def _scalar(rewriter: Rewriter, value: int) -> ir.Value:
    constant: ir.Value = rewriter.op("Constant", [], value=ir.tensor(np.int64(value)))
    return constant
