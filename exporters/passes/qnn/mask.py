"""What attention may see, as HTP computes it: a row for the history plus a constant.

Joined from an expanded row and a constant, as on Intel's NPUs, the mask reaches only the first
key head where activations are quantized (emulator of QNN 2.51, onnxruntime-qnn 2.7.0: Expand,
Concat, then an Add that broadcasts over heads).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.ov.static_attention import MASK
from exporters.passes.ov.static_frame import count_steps
from lfm2_deploy.static_graphs import HISTORY_MASK, MASKED

CAUSAL = "causal"


def lower_mask(draft: Draft) -> None:
    """Have the mask ready: [1, 1, share*S or 1, T+S], the same for all layers."""
    nodes = draft.find("CachedAttention")
    if not nodes:
        return
    rewriter, steps = Rewriter(draft, nodes[0]), count_steps(draft)
    rewriter.prefix = MASK
    own = np.zeros((1, 1, 1, steps), np.float32)
    zeros = draft.book.constant(draft.graph, f"zeros.{steps}", own)
    mask = rewriter.op("Concat", [draft.shared[HISTORY_MASK], zeros], axis=-1)
    if steps > 1:
        mask = rewriter.op("Add", [mask, _make_causal(draft, steps)])
    draft.shared[MASK] = mask


def _make_causal(draft: Draft, steps: int) -> ir.Value:
    """[1, 1, share*S, T+S]: of the new tokens each sees itself and those before it."""
    config = draft.config
    share = config.num_attention_heads // config.num_key_value_heads
    new = np.triu(np.full((steps, steps), MASKED, np.float32), 1)
    history = np.zeros((share * steps, draft.context_length), np.float32)
    both = np.concatenate([history, np.tile(new, (share, 1))], axis=1)
    return draft.book.constant(draft.graph, CAUSAL, both[None, None])
