"""lfm2::CausalConv -> one product for each tap; the state's columns are gathered.

A product with rows of zeros and a one, as on Intel's NPUs, is not exact here: HTP's product
of two 16-bit values rounds (3e-5 of the range, seen in the emulator of QNN 2.51).
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.ov.conv import conv_taps
from exporters.passes.ov.static_frame import count_steps
from lfm2_deploy.static_graphs import ENDS, PICKS


def lower_conv(draft: Draft) -> None:
    """Lower every convolution of a graph of fixed shape."""
    width = draft.config.conv_state_width
    picks = _take_picks(draft) if ENDS in draft.shared else None
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        columns = rewriter.op("Concat", [past, x], axis=1)
        steps, y = count_steps(draft), None
        for tap, kernel in enumerate(conv_taps(draft, name_of(weight))):
            part = x if tap == width else _slice(rewriter, columns, tap, tap + steps)
            term = rewriter.op("Mul", [part, kernel])
            y = term if y is None else rewriter.op("Add", [y, term])
        if picks is None:
            present = _slice(rewriter, columns, 1, 1 + width)
        else:
            present = rewriter.op("Gather", [columns, picks], axis=1)
        assert y is not None
        rewriter.finish(y, present)
    _drop_ends(draft)


def _take_picks(draft: Draft) -> ir.Value:
    """Which columns a state continues with, as an input."""
    width = draft.config.conv_state_width
    picks = ir.Value(name=PICKS, shape=ir.Shape((width,)), type=ir.TensorType(ir.DataType.INT32))
    draft.graph.inputs.append(picks)
    return picks


def _drop_ends(draft: Draft) -> None:
    """Take the other form of the same out of the graph, with its Cast."""
    if draft.shared.pop(ENDS, None) is None:
        return
    (ends,) = [value for value in draft.graph.inputs if value.name == ENDS]
    # Not `remove_unused`: what the frame has ready for later passes is unused so far.
    for use in list(ends.uses()):
        draft.graph.remove(use.node, safe=True)
    draft.graph.inputs.remove(ends)


def _slice(rewriter: Rewriter, x: ir.Value, start: int, end: int) -> ir.Value:
    y: ir.Value = rewriter.op("Slice", [x, *(rewriter.ints(n) for n in (start, end, 1))])
    return y
