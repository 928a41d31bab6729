"""lfm2::CachedAttention -> per-head norms and GroupQueryAttention."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, attribute, name_of
from exporters.passes.lower_lengths import LAST32, LONGEST, NEW32
from exporters.passes.weights import plain_weight
from exporters.weight_book import Slot
from lfm2_deploy.rotary import compute_rotary


def lower_attention(draft: Draft) -> None:
    """Lower every attention; rotary tables are declared once and shared.

    The norms stay apart: GroupQueryAttention's own q_norm_weight is refused by the CPU
    provider ("implemented only on the CUDA and WebGPU EPs", onnxruntime 1.32.0).
    `query_seqlens` tells it how many of a right-padded row's tokens are real.
    """
    for node in draft.find("CachedAttention"):
        query, key, value, q_norm, k_norm, past_key, past_value = node.inputs[:7]
        rewriter = Rewriter(draft, node)
        epsilon = attribute(node, "epsilon")
        query = _norm_heads(rewriter, query, q_norm, epsilon)
        key = _norm_heads(rewriter, key, k_norm, epsilon)
        shared = draft.shared
        cos, sin = _rotary_tables(draft)
        lengths = [shared[LAST32], shared[LONGEST]]
        outputs = rewriter.op(
            "GroupQueryAttention",
            [query, key, value, past_key, past_value, *lengths, cos, sin, *[None] * 7,
             shared[NEW32]],
            domain=MICROSOFT,
            outputs=3,
            num_heads=draft.config.num_attention_heads,
            kv_num_heads=draft.config.num_key_value_heads,
            do_rotary=1,
        )  # fmt: skip
        rewriter.finish(*outputs)


def _norm_heads(
    rewriter: Rewriter, x: ir.Value | None, weight: ir.Value | None, epsilon: float
) -> ir.Value:
    gamma = plain_weight(rewriter.draft, name_of(weight))
    heads = rewriter.op("Reshape", [x, rewriter.ints(0, 0, -1, rewriter.draft.config.head_dim)])
    normed = rewriter.op(
        "SimplifiedLayerNormalization", [heads, gamma], axis=-1, epsilon=epsilon, stash_type=1
    )
    joined: ir.Value = rewriter.op("Reshape", [normed, rewriter.ints(0, 0, -1)])
    return joined


def _rotary_tables(draft: Draft) -> tuple[ir.Value, ir.Value]:
    names, shape = ("rope.cos", "rope.sin"), (draft.context_length, draft.config.head_dim // 2)
    is_new = names[0] not in draft.book.declared
    cos, sin = (draft.book.declare(draft.graph, name, shape) for name in names)
    if is_new:
        theta, head_dim, length = draft.config.rope_theta, draft.config.head_dim, shape[0]
        draft.book.fill((), lambda: compute_rotary(theta, head_dim, length), *map(Slot, names))
    return cos, sin
