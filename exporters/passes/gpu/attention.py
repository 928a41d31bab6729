"""lfm2::CachedAttention -> per-head norms and GroupQueryAttention, RoPE in it or apart."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, attribute
from exporters.passes.attention_parts import norm_heads, rotary_tables
from lfm2_deploy.gpu_graphs import POSITIONS, SEQLENS, TOTAL


def lower_attention(draft: Draft) -> None:
    """Lower every attention; GroupQueryAttention rotates queries and keys."""
    for node in draft.find("CachedAttention"):
        rewriter = Rewriter(draft, node)
        query, key = _norm(rewriter)
        rewriter.finish(*_attend(rewriter, query, key, rotary_tables(draft)))


def lower_attention_apart(draft: Draft) -> None:
    """Lower every attention with RotaryEmbedding before GroupQueryAttention.

    DirectML's GroupQueryAttention reads neither `do_rotary` nor the tables, and says nothing
    (DmlOperatorGroupQueryAttention.cpp, onnxruntime 1.30).
    """
    for node in draft.find("CachedAttention"):
        rewriter = Rewriter(draft, node)
        tables = rotary_tables(draft)
        query, key = (
            rewriter.op("RotaryEmbedding", [x, draft.shared[POSITIONS], *tables], domain=MICROSOFT)
            for x in _norm(rewriter)
        )
        rewriter.finish(*_attend(rewriter, query, key, ()))


def _norm(rewriter: Rewriter) -> tuple[ir.Value, ir.Value]:
    query, key, _, q_norm, k_norm = rewriter.node.inputs[:5]
    epsilon = attribute(rewriter.node, "epsilon")
    return (
        norm_heads(rewriter, query, q_norm, epsilon),
        norm_heads(rewriter, key, k_norm, epsilon),
    )


def _attend(
    rewriter: Rewriter, query: ir.Value, key: ir.Value, tables: tuple[ir.Value, ...]
) -> list[ir.Value]:
    draft = rewriter.draft
    value, past_key, past_value = (rewriter.node.inputs[n] for n in (2, 5, 6))
    outputs: list[ir.Value] = rewriter.op(
        "GroupQueryAttention",
        [query, key, value, past_key, past_value, draft.shared[SEQLENS], draft.shared[TOTAL],
         *tables],
        domain=MICROSOFT,
        outputs=3,
        num_heads=draft.config.num_attention_heads,
        kv_num_heads=draft.config.num_key_value_heads,
        do_rotary=int(bool(tables)),
    )  # fmt: skip
    return outputs
