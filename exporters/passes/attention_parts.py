"""What every lowering of attention to GroupQueryAttention needs: norms of heads, rotary tables."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.weights import plain_weight
from exporters.weight_book import Array, Slot
from lfm2_deploy.rotary import compute_rotary


def norm_heads(
    rewriter: Rewriter, x: ir.Value | None, weight: ir.Value | None, epsilon: float
) -> ir.Value:
    """RMSNorm of each head of x [B, S, N*D]."""
    gamma = plain_weight(rewriter.draft, name_of(weight))
    heads = rewriter.op("Reshape", [x, rewriter.ints(0, 0, -1, rewriter.draft.config.head_dim)])
    normed = rewriter.op(
        "SimplifiedLayerNormalization", [heads, gamma], axis=-1, epsilon=epsilon, stash_type=1
    )
    joined: ir.Value = rewriter.op("Reshape", [normed, rewriter.ints(0, 0, -1)])
    return joined


def rotary_tables(draft: Draft) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines [T, D/2] of the whole context, declared once and shared by all layers."""
    names, shape = ("rope.cos", "rope.sin"), (draft.context_length, draft.config.head_dim // 2)
    is_new = names[0] not in draft.book.declared
    cos, sin = (draft.book.declare(draft.graph, name, shape, draft.dtype) for name in names)
    if is_new:
        theta, head_dim, length = draft.config.rope_theta, draft.config.head_dim, shape[0]
        dtype = draft.dtype.numpy()

        def compute() -> list[Array]:
            return [table.astype(dtype) for table in compute_rotary(theta, head_dim, length)]

        draft.book.fill((), compute, *map(Slot, names))
    return cos, sin
