"""lfm2::CachedAttention -> per-head norms and GroupQueryAttention."""

from __future__ import annotations

from exporters.draft import MICROSOFT, Draft, Rewriter, attribute
from exporters.passes.attention_parts import norm_heads, rotary_tables
from exporters.passes.lower_lengths import LAST32, LONGEST, NEW32


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
        query = norm_heads(rewriter, query, q_norm, epsilon)
        key = norm_heads(rewriter, key, k_norm, epsilon)
        shared = draft.shared
        cos, sin = rotary_tables(draft)
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
