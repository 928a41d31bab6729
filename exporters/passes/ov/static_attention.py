"""lfm2::CachedAttention in graphs of fixed shape: products over history and new rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, attribute, name_of
from exporters.passes.ov.norm import rms_norm
from exporters.passes.ov.static_frame import count_steps
from exporters.passes.weights import plain_weight
from exporters.weight_book import Slot
from lfm2_deploy.static_graphs import COS, HISTORY_MASK, MASKED, SIN

_MASK = "mask"


# (rewriter, x, gamma, epsilon) -> x normed over its last axis.
Norm = Callable[[Rewriter, ir.Value | None, ir.Value, float], ir.Value]
# (rewriter, scores, S, query heads of a key head) -> scores, lowered where nothing may be seen.
AddMask = Callable[[Rewriter, ir.Value, int, int], ir.Value]


def lower_static_attention(draft: Draft) -> None:
    """lfm2::CachedAttention as Intel's NPUs want it."""
    lower_attention_with(draft, rms_norm, _add_mask)


def lower_attention_with(draft: Draft, norm: Norm, add_mask: AddMask) -> None:
    """lfm2::CachedAttention -> two products and a softmax over history and new rows.

    The query heads that share a key head are rows of one product, so keys are not repeated.

    Args:
        draft: with the inputs of `static_frame`.
        norm: builds the norm of each head.
        add_mask: applies masks to scores.
    """
    for node in draft.find("CachedAttention"):
        query, key, value, q_norm, k_norm, past_key, past_value = node.inputs[:7]
        rewriter, epsilon = Rewriter(draft, node), attribute(node, "epsilon")
        config, steps = draft.config, count_steps(draft)
        kv, size = config.num_key_value_heads, config.head_dim
        share = config.num_attention_heads // kv
        heads = (_split_heads(rewriter, x) for x in (query, key))
        gammas = (_scaled(draft, name_of(w), s) for w, s in ((q_norm, size**-0.5), (k_norm, 1.0)))
        q, k = (
            _rotate(rewriter, norm(rewriter, x, gamma, epsilon))
            for x, gamma in zip(heads, gammas, strict=True)
        )
        q = rewriter.op("Reshape", [q, rewriter.ints(1, steps, kv, share, size)])
        q = rewriter.op("Transpose", [q], perm=[0, 2, 3, 1, 4])
        q = rewriter.op("Reshape", [q, rewriter.ints(1, kv, share * steps, size)])
        k = rewriter.op("Transpose", [k], perm=[0, 2, 1, 3])
        v = rewriter.op("Reshape", [value, rewriter.ints(1, steps, kv, size)])
        v = rewriter.op("Transpose", [v], perm=[0, 2, 1, 3])
        y = _attend(rewriter, q, (past_key, past_value), (k, v), steps, share, add_mask)
        y = rewriter.op("Reshape", [y, rewriter.ints(1, kv, share, steps, size)])
        y = rewriter.op("Transpose", [y], perm=[0, 3, 1, 2, 4])
        y = rewriter.op("Reshape", [y, rewriter.ints(1, steps, kv * share * size)])
        rewriter.finish(y, k, v)


def _attend(
    rewriter: Rewriter,
    q: ir.Value,
    past: Sequence[ir.Value | None],
    new: Sequence[ir.Value],
    steps: int,
    share: int,
    add_mask: AddMask,
) -> ir.Value:
    """Attention over the history joined with the new rows.

    Two products instead of a joined one would save the copy, but Intel's compiler (8.4) fails
    on their softmax ("DecomposeAttention Pass failed"), and with a softmax spelled out it
    estimates 6 % more for one token and 58 % more for 128.
    """
    op = rewriter.op
    key, value = (op("Concat", pair, axis=2) for pair in zip(past, new, strict=True))
    scores = op("MatMul", [q, op("Transpose", [key], perm=[0, 1, 3, 2])])
    scores = op("Softmax", [add_mask(rewriter, scores, steps, share)], axis=-1)
    y: ir.Value = op("MatMul", [scores, value])
    return y


def _add_mask(rewriter: Rewriter, scores: ir.Value, steps: int, share: int) -> ir.Value:
    masked: ir.Value = rewriter.op("Add", [scores, _mask(rewriter, steps, share)])
    return masked


def _mask(rewriter: Rewriter, steps: int, share: int) -> ir.Value:
    """[1, 1, share*S or 1, T+S], the same for all layers."""
    draft, op = rewriter.draft, rewriter.op
    if _MASK not in draft.shared:
        history = draft.shared[HISTORY_MASK]
        if steps > 1:
            size = (1, 1, share * steps, draft.context_length)
            history = op("Expand", [history, rewriter.ints(*size)])
        draft.shared[_MASK] = op("Concat", [history, _causal(rewriter, steps, share)], axis=-1)
    return draft.shared[_MASK]


def _causal(rewriter: Rewriter, steps: int, share: int) -> ir.Value:
    """[1, 1, share*S or 1, S]: each token sees itself and those before it."""
    draft = rewriter.draft
    mask = np.triu(np.full((1, 1, steps, steps), MASKED, np.float32), 1)
    causal = draft.book.constant(draft.graph, "causal", mask)
    # A single token's heads all see the same. Repeated in the graph: a file need not hold it.
    repeats = share if steps > 1 else 1
    return causal if repeats == 1 else rewriter.op("Concat", [causal] * repeats, axis=2)


def _split_heads(rewriter: Rewriter, x: ir.Value | None) -> ir.Value:
    """[1, S, n*D] -> [1, S, n, D]."""
    draft = rewriter.draft
    shape = rewriter.ints(1, count_steps(draft), -1, draft.config.head_dim)
    heads: ir.Value = rewriter.op("Reshape", [x, shape])
    return heads


def _scaled(draft: Draft, weight: str, scale: float) -> ir.Value:
    """A norm's weight with a factor in it."""
    if scale == 1.0:
        return plain_weight(draft, weight)
    name = f"{weight}.scaled"
    is_new = name not in draft.book.declared
    gamma = draft.book.declare(draft.graph, name, (draft.config.head_dim,))
    if is_new:
        draft.book.fill([weight], lambda w: [w * np.float32(scale)], Slot(name))
    return gamma


def _rotate(rewriter: Rewriter, x: ir.Value) -> ir.Value:
    """Rotate-half RoPE of [1, S, n, D], half by half.

    The compiler knows x * cos + swapped * sin, makes one operator of it, and then fails for
    platform 3720 where attention follows ("Tiling dim must be first dimension greater than
    1", compiler 8.4, 128 tokens over 1024). Spelled out so, it takes it; time is the same.
    """
    op, half = rewriter.op, rewriter.draft.config.head_dim // 2
    cos, sin = (rewriter.draft.shared[name] for name in (COS, SIN))
    low, high = op("Split", [x, rewriter.ints(half, half)], outputs=2, axis=-1)
    turned_low = op("Sub", [op("Mul", [low, cos]), op("Mul", [high, sin])])
    turned_high = op("Add", [op("Mul", [high, cos]), op("Mul", [low, sin])])
    y: ir.Value = op("Concat", [turned_low, turned_high], axis=-1)
    return y
