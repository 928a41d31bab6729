"""lfm2::CausalConv -> one product for each tap, over shifted columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.ov.stateful_frame import WINDOW, continue_state
from exporters.passes.ov.static_frame import count_steps
from exporters.weight_book import Slot
from lfm2_deploy.static_graphs import ENDS

_TO_THE_END = np.iinfo(np.int64).max


def lower_static_conv(draft: Draft) -> None:
    """Lower every convolution of a graph of fixed shape."""
    width = draft.config.conv_state_width
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        columns = rewriter.op("Concat", [past, x], axis=1)
        steps = count_steps(draft)
        terms = []
        for tap, kernel in enumerate(conv_taps(draft, name_of(weight))):
            part = x if tap == width else _slice(rewriter, columns, tap, tap + steps, 1)
            terms.append(rewriter.op("Mul", [part, kernel]))
        y = terms[0]
        for term in terms[1:]:
            y = rewriter.op("Add", [y, term])
        if ENDS in draft.shared:
            present = rewriter.op("MatMul", [draft.shared[ENDS], columns])
        else:
            present = _slice(rewriter, columns, 1, 1 + width, 1)
        rewriter.finish(y, present)


def lower_stateful_conv(draft: Draft) -> None:
    """Lower every convolution of a stateful graph, over the window that padding leaves."""
    width = draft.config.conv_state_width
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        op, ints = rewriter.op, rewriter.ints
        past = op("Transpose", [continue_state(rewriter, past)], perm=[0, 2, 1])
        columns = op("Concat", [past, x], axis=1)
        columns = op("GatherND", [columns, draft.shared[WINDOW]], batch_dims=1)
        y: ir.Value | None = None
        for tap, kernel in enumerate(conv_taps(draft, name_of(weight))):
            end = tap - width or _TO_THE_END
            part = op("Slice", [columns, ints(tap), ints(end), ints(1)])
            term = op("Mul", [part, kernel])
            y = term if y is None else op("Add", [y, term])
        present = op("Slice", [columns, ints(-width), ints(_TO_THE_END), ints(1)])
        assert y is not None
        rewriter.finish(y, op("Transpose", [present], perm=[0, 2, 1]))


def conv_taps(draft: Draft, name: str) -> list[ir.Value]:
    """The kernel, one float32 [H] for each tap, the oldest first."""
    hidden, width = draft.config.hidden_size, draft.config.conv_L_cache
    names = [f"{name}.tap{tap}" for tap in range(width)]
    is_new = names[0] not in draft.book.declared
    values = [draft.book.declare(draft.graph, tap, (hidden,)) for tap in names]
    if is_new:
        draft.book.fill([name], lambda w: [w[:, 0, tap] for tap in range(width)], *map(Slot, names))
    return values


def _slice(rewriter: Rewriter, x: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    ints = rewriter.ints
    y: ir.Value = rewriter.op("Slice", [x, ints(start), ints(end), ints(axis)])
    return y
