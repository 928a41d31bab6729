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
        assert mask is not None
        rewriter = Rewriter(draft, node)
        real = rewriter.op("GreaterOrEqual", [ids, rewriter.ints(0)])
        ones = rewriter.op("Cast", [real], to=ir.DataType.INT64)
        share_lengths(
            rewriter, mask, rewriter.op("ReduceSum", [ones, rewriter.ints(1)], keepdims=0)
        )


def share_lengths(rewriter: Rewriter, mask: ir.Value, new: ir.Value) -> None:
    """Replace Lengths, the rewriter's node.

    Args:
        rewriter: of that node.
        mask: int64 [B, T], a 1 for each token that a row holds after the call.
        new: int64 [B], how many of them are new.
    """
    total = rewriter.op("ReduceSum", [mask, rewriter.ints(1)], keepdims=0)
    past = rewriter.op("Sub", [total, new])
    last = rewriter.op("Sub", [total, rewriter.ints(1)])
    longest = rewriter.op("ReduceMax", [total], keepdims=0)
    for name, value in ((NEW32, new), (LAST32, last), (LONGEST, longest)):
        rewriter.draft.shared[name] = rewriter.op("Cast", [value], to=ir.DataType.INT32)
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
