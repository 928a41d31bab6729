"""A checkpoint whose tensors are those that a bundle holds: rounded as planned, and float32 again.

The one place that knows what rounding a plan means. A target whose encoders round otherwise than
`round_packed` says so in `Target.rounding`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from exporters.quantize.pack import choose_levels, dequantize
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.checkpoint.derived import DerivedCheckpoint
from lfm2_deploy.contracts import Checkpoint, FloatArray
from lfm2_deploy.weights import WeightSpec, list_weights

# (tensor, float32 values, plan) -> what is stored, as float32. Rows are independent.
Rounder = Callable[[WeightSpec, FloatArray, TensorPlan], FloatArray]

# Numbers rounded at once: they and their copies stay in a core's cache.
_PIECE = 1 << 16
# Pieces are small, so that more threads cost no memory.
_MOST_WORKERS = 8


def round_packed(spec: WeightSpec, weight: FloatArray, plan: TensorPlan) -> FloatArray:
    """As `pack.choose_levels` with float32 scales, or as floats of the plan's width."""
    if not plan.is_quantized:
        return round_float(weight, plan.bits)
    levels, scales = choose_levels(weight, plan.bits, plan.group, plan.rounding)
    return dequantize(levels, scales, plan.bits)


def round_float(weight: FloatArray, bits: int) -> FloatArray:
    """As floats of 16 or 32 bits store it."""
    return weight.astype(np.float16).astype(np.float32) if bits == 16 else weight


class StoredCheckpoint(DerivedCheckpoint):
    """`contracts.Checkpoint` over another, as a plan stores it.

    Args:
        base: the checkpoint; read as often as this one is.
        plan: canonical name -> how a tensor is stored.
        rounder: what storing does to its numbers.
    """

    def __init__(
        self, base: Checkpoint, plan: Mapping[str, TensorPlan], rounder: Rounder = round_packed
    ) -> None:
        super().__init__(base)
        self.plan, self.rounder = plan, rounder
        self._specs = {spec.name: spec for spec in list_weights(base.config)}

    def read(self, name: str) -> FloatArray:
        """One tensor; see `contracts.Checkpoint.read`."""
        return self._round(name, self.base.read(name))

    def read_rows(self, name: str, rows: Sequence[int]) -> FloatArray:
        """Some rows of a matrix, [N, K] -> [len(rows), K]; the others are not rounded."""
        return self._round(name, self.base.read(name)[list(rows)])

    def _round(self, name: str, weight: FloatArray) -> FloatArray:
        spec, plan = self._specs[name], self.plan[name]
        if plan.is_quantized and plan.rounding == "recover":
            return weight  # it lies on its grid already
        if weight.ndim != 2 or not plan.is_quantized:
            return np.ascontiguousarray(self.rounder(spec, weight, plan), np.float32)
        rounded = np.empty_like(weight, dtype=np.float32)
        at_once = max(1, _PIECE // weight.shape[1])

        def work(start: int) -> None:
            piece = slice(start, start + at_once)
            rounded[piece] = self.rounder(spec, weight[piece], plan)

        with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as pool:
            list(pool.map(work, range(0, len(weight), at_once)))
        return rounded
