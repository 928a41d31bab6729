"""What attention may see, as HTP computes it: two sums, with a constant and with a row.

Not one sum with a mask that the graph joins, as on Intel's NPUs: after a Concat along the last
axis whose parts do not fill 64 columns, or an Expand, the compiler mixes up what is masked when
activations are quantized (emulator of QNN 2.51, SoC model 60: history 48 and 7 new tokens, or
512 and 64 where two key heads share the mask). So the host gives the row as a whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.ov.static_frame import count_steps
from lfm2_deploy.static_graphs import HISTORY_MASK, MASKED, ROW_MASK

CAUSAL = "causal"


def take_row_mask(draft: Draft) -> None:
    """Take the mask of history and new tokens as one input, in the place of the history's."""
    graph = draft.graph
    narrow = next(value for value in graph.inputs if value.name == HISTORY_MASK)
    wide = draft.shared[HISTORY_MASK]
    length = draft.context_length + count_steps(draft)
    narrow.name, narrow.shape = ROW_MASK, ir.Shape((1, 1, 1, length))
    if wide is not narrow:
        wide.name = f"{ROW_MASK}.wide"


def add_masks(rewriter: Rewriter, scores: ir.Value, steps: int, share: int) -> ir.Value:
    """Scores [1, KV, share*S, T+S], lowered wherever a token must not look."""
    if steps > 1:
        # A name of its own, so that all others are the same with and without this node.
        inner = Rewriter(rewriter.draft, rewriter.node)
        inner.prefix = f"{rewriter.prefix}/{CAUSAL}"
        scores = inner.op("Add", [scores, _make_causal(rewriter.draft, steps, share)])
    masked: ir.Value = rewriter.op("Add", [scores, rewriter.draft.shared[HISTORY_MASK]])
    return masked


def _make_causal(draft: Draft, steps: int, share: int) -> ir.Value:
    """[1, 1, share*S, T+S]: of the new tokens each sees itself and those before it."""
    new = np.triu(np.full((steps, steps), MASKED, np.float32), 1)
    history = np.zeros((share * steps, draft.context_length), np.float32)
    both = np.concatenate([history, np.tile(new, (share, 1))], axis=1)
    return draft.book.constant(draft.graph, CAUSAL, both[None, None])
