"""lfm2::CachedAttention in stateful graphs: Attention, which plugins fold with its cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, attribute, name_of
from exporters.passes.ov.norm import constant, rms_norm
from exporters.passes.ov.stateful_frame import BIAS, COS, SIN, continue_state
from exporters.passes.weights import plain_weight

_TO_THE_END = np.iinfo(np.int64).max


def lower_stateful_attention(draft: Draft) -> None:
    """lfm2::CachedAttention -> Attention over the past joined with the new rows.

    Key heads are repeated by Unsqueeze, Expand and Reshape, the form that OpenVINO's CPU and
    GPU plugins fold into their attention with a cache (StatefulSDPAFusion).
    """
    for node in draft.find("CachedAttention"):
        query, key, value, q_norm, k_norm, past_key, past_value = node.inputs[:7]
        rewriter, epsilon = Rewriter(draft, node), attribute(node, "epsilon")
        op, ints = rewriter.op, rewriter.ints
        config = draft.config
        share = config.num_attention_heads // config.num_key_value_heads
        q = _rotate(rewriter, _heads(rewriter, query, name_of(q_norm), epsilon))
        k = _rotate(rewriter, _heads(rewriter, key, name_of(k_norm), epsilon))
        v = _heads(rewriter, value)
        k = op("Concat", [continue_state(rewriter, past_key), k], axis=2)
        v = op("Concat", [continue_state(rewriter, past_value), v], axis=2)
        repeated = [_repeat(rewriter, x, share) for x in (k, v)]
        y = op("Attention", [q, *repeated, draft.shared[BIAS]], scale=config.head_dim**-0.5)
        y = op("Transpose", [y], perm=[0, 2, 1, 3])
        y = op("Reshape", [y, ints(0, 0, config.num_attention_heads * config.head_dim)])
        rewriter.finish(y, k, v)


def _heads(
    rewriter: Rewriter, x: ir.Value | None, norm: str | None = None, epsilon: float = 0.0
) -> ir.Value:
    """[B, S, n*D] -> [B, n, S, D], each head normed where a norm is given."""
    size = rewriter.draft.config.head_dim
    heads = rewriter.op("Reshape", [x, rewriter.ints(0, 0, -1, size)])
    if norm is not None:
        heads = rms_norm(rewriter, heads, plain_weight(rewriter.draft, norm), epsilon)
    turned: ir.Value = rewriter.op("Transpose", [heads], perm=[0, 2, 1, 3])
    return turned


def _rotate(rewriter: Rewriter, x: ir.Value) -> ir.Value:
    """Rotate-half RoPE of [B, n, S, D], in the form that OpenVINO's RoPEFusion recognises."""
    op, ints, shared = rewriter.op, rewriter.ints, rewriter.draft.shared
    half = rewriter.draft.config.head_dim // 2
    low = op("Slice", [x, ints(0), ints(half), ints(3)])
    high = op("Slice", [x, ints(half), ints(_TO_THE_END), ints(3)])
    negative = op("Mul", [high, constant(rewriter, -1.0)])
    swapped = op("Concat", [negative, low], axis=-1)
    y: ir.Value = op("Add", [op("Mul", [x, shared[COS]]), op("Mul", [swapped, shared[SIN]])])
    return y


def _repeat(rewriter: Rewriter, x: ir.Value, share: int) -> ir.Value:
    """[B, KV, T, D] -> [B, KV*share, T, D], each head `share` times."""
    config, op, ints = rewriter.draft.config, rewriter.op, rewriter.ints
    if share == 1:
        return x
    apart = op("Unsqueeze", [x, ints(2)])
    wide = op("Expand", [apart, ints(1, 1, share, 1, 1)])
    size = (0, config.num_attention_heads, -1, config.head_dim)
    joined: ir.Value = op("Reshape", [wide, ints(*size)])
    return joined
