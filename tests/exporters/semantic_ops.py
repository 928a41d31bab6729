"""The operators of the domain "lfm2" in numpy: slow, plain, and what passes must preserve.

One class an operator for onnx's reference evaluator. Sums are float64 and rows are
looped over, so that nothing here shares a shortcut with torch or with a kernel.
Columns of padding hold nothing of meaning: zeros here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from exporters.draft import SEMANTIC
from lfm2_deploy.config import Lfm2Config

Array = NDArray[Any]


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    wide = x.astype(np.float64)
    root: Array = np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon)
    return wide / root * weight


def product(x: Array, weight: Array) -> Array:
    return x.astype(np.float64) @ weight.astype(np.float64).T


def rotate(x: Array, position: int, theta: float) -> Array:
    """One head [D], turned to its position: number i pairs with number i + D/2."""
    half = len(x) // 2
    turned = np.empty(len(x))
    for i in range(half):
        # The angle's float32 rounding is part of the model: see compute_rotary.
        frequency = 1 / np.float32(theta) ** np.float32(i / half)
        angle = np.float32(position) * np.float32(frequency)
        cos, sin = math.cos(angle), math.sin(angle)
        turned[i] = x[i] * cos - x[i + half] * sin
        turned[i + half] = x[i + half] * cos + x[i] * sin
    return turned


def swiglu(x: Array, w1: Array, w3: Array, w2: Array) -> Array:
    gate = product(x, w1)
    return product(gate / (1 + np.exp(-gate)) * product(x, w3), w2)


class _Semantic(OpRun):
    op_domain = SEMANTIC


class Lengths(_Semantic):
    def _run(self, ids: Array, mask: Array) -> tuple[Array, Array]:
        new = (ids >= 0).sum(1)
        return mask.sum(1) - new, new


class Embedding(_Semantic):
    def _run(self, ids: Array, table: Array) -> tuple[Array]:
        return (table[np.maximum(ids, 0)],)


class RMSNorm(_Semantic):
    def _run(self, x: Array, weight: Array, epsilon: float) -> tuple[Array]:
        return (rms_norm(x, weight, epsilon).astype(np.float32),)


class Linear(_Semantic):
    def _run(self, x: Array, weight: Array) -> tuple[Array]:
        return (product(x, weight).astype(np.float32),)


class TakeLast(_Semantic):
    def _run(self, x: Array, new: Array, keep: Array) -> tuple[Array]:
        """A row shorter than `keep` repeats its first position."""
        count = int(keep[0])
        rows = [
            row[[max(n - count + i, 0) for i in range(count)]]
            for row, n in zip(x, new, strict=True)
        ]
        return (np.stack(rows),)


class CausalConv(_Semantic):
    def _run(self, x: Array, weight: Array, past: Array, new: Array) -> tuple[Array, Array]:
        y, present = np.zeros_like(x), past.copy()
        width = weight.shape[2]
        for row, count in enumerate(new):
            columns = np.concatenate([past[row].T, x[row, :count]])
            for step in range(count):
                window = columns[step : step + width].astype(np.float64)
                y[row, step] = (window * weight[:, 0].T).sum(0)
            present[row] = columns[count:].T
        return y, present


class _CachedAttention(_Semantic):
    config: Lfm2Config

    def _run(
        self,
        query: Array,
        key: Array,
        value: Array,
        q_norm: Array,
        k_norm: Array,
        past_key: Array,
        past_value: Array,
        past: Array,
        new: Array,
        epsilon: float,
    ) -> tuple[Array, Array, Array]:
        size, theta = self.config.head_dim, self.config.rope_theta
        y, keys, values = np.zeros_like(query), past_key.copy(), past_value.copy()
        share = self.config.num_attention_heads // self.config.num_key_value_heads
        for row, count in enumerate(new):
            for step in range(count):
                place = int(past[row]) + step
                for n, head in enumerate(key[row, step].reshape(-1, size)):
                    keys[row, n, place] = rotate(rms_norm(head, k_norm, epsilon), place, theta)
                    values[row, n, place] = value[row, step, n * size : (n + 1) * size]
                for n, head in enumerate(query[row, step].reshape(-1, size)):
                    turned = rotate(rms_norm(head, q_norm, epsilon), place, theta)
                    seen = keys[row, n // share, : place + 1].astype(np.float64)
                    scores = np.exp(seen @ turned / math.sqrt(size))
                    mixed = scores / scores.sum() @ values[row, n // share, : place + 1]
                    y[row, step, n * size : (n + 1) * size] = mixed
        return y, keys, values


class _Experts(_Semantic):
    config: Lfm2Config

    def _run(self, x: Array, scores: Array, probabilities: Array, *weights: Array) -> tuple[Array]:
        """Weights come expert by expert: w1, w3, w2."""
        moe, y = self.config.moe, np.zeros_like(x)
        assert moe is not None
        for place in np.ndindex(*x.shape[:-1]):
            best = np.argsort(-scores[place], kind="stable")[: moe.num_experts_per_tok]
            share = probabilities[place][best].astype(np.float64)
            if moe.norm_topk_prob:
                share /= share.sum() + 1e-6
            share *= moe.routed_scaling_factor
            parts = [swiglu(x[place], *weights[3 * e : 3 * e + 3]) for e in best]
            y[place] = (share[:, None] * np.stack(parts)).sum(0)
        return (y,)


def make_semantic_ops(config: Lfm2Config) -> list[type[OpRun]]:
    """The operators; two of them take what they need to know from the model's config."""
    of_config = [
        type(base.__name__.removeprefix("_"), (base,), {"config": config})
        for base in (_CachedAttention, _Experts)
    ]
    return [Lengths, Embedding, RMSNorm, Linear, TakeLast, CausalConv, *of_config]
