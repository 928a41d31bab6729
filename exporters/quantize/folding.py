"""Scale the channels between two matrices so that rounding the second costs less.

AWQ (arXiv:2306.00978): the columns of a matrix whose inputs are large are multiplied by s, and
what makes those inputs is divided by s. In floats nothing changes; rounded, large inputs meet
finer columns. What can be divided exactly, in LFM2:

    operator_norm        -> conv.in_proj; q, k and v
    conv.in_proj, C rows -> conv.out_proj
    v, by head           -> self_attn.out_proj, of all query heads that share it
    ffn_norm             -> w1, w3; of a mixture those of all experts, and the router
    w3 rows              -> w2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from exporters.quantize.grid import Grid, divide
from lfm2_deploy.checkpoint.derived import DerivedCheckpoint
from lfm2_deploy.contracts import Checkpoint, FloatArray

# Powers of the inputs' sizes that are tried; 0 scales nothing.
_POWERS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8)
# Tokens on which they are tried, spread over all.
TRIED_TOKENS = 512
# Scales lie within this factor of 1: steps must fit float16.
_MOST = 64.0


class FoldedCheckpoint(DerivedCheckpoint):
    """A `Checkpoint` some of whose rows and columns are scaled; it computes the same."""

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self._factors: dict[str, list[tuple[int, FloatArray]]] = {}

    @property
    def folded(self) -> tuple[str, ...]:
        """Names of the tensors that differ from the checkpoint's."""
        return tuple(self._factors)

    def fold(self, name: str, axis: int, factors: Tensor) -> None:
        """From now on multiply a tensor along an axis by factors [shape[axis]]."""
        self._factors.setdefault(name, []).append((axis, factors.numpy().astype(np.float32)))

    def read(self, name: str) -> FloatArray:
        """One tensor, float32, scaled.

        Raises:
            CheckpointError: no such tensor; or it is truncated, or not finite.
        """
        array = self.base.read(name)
        for axis, factors in self._factors.get(name, []):
            shape = [1] * array.ndim
            shape[axis] = -1
            array = array * factors.reshape(shape)
        return array


def choose_scales(
    weights: Sequence[Tensor], x: Tensor, grid: Grid, heads: tuple[int, int] = (1, 1)
) -> Tensor:
    """By what to multiply the columns of some matrices of one input.

    Args:
        weights: float32 [N, K] each.
        x: float32 [T, K], some inputs.
        grid: the levels they will have.
        heads: of keys and values, and of queries for each of them: columns [kv, q, D] have the
            same scales for all q.

    Returns:
        float32 [K], all 1 where scaling does not help.
    """
    joined = torch.cat(list(weights))
    sizes = x.square().mean(0).reshape(*heads, -1)
    sizes = sizes.mean(1, keepdim=True).expand_as(sizes).flatten().clamp_min(1e-12)
    best, least = torch.ones(len(sizes)), torch.inf
    for power in _POWERS:
        scales = sizes ** (power / 2)
        scales = (scales / scales.log().mean().exp()).clamp_(1 / _MOST, _MOST)
        off = _round(joined * scales, grid) / scales - joined
        error = float((off @ x.T).square().sum())
        # A little more must be gained than chance gives.
        if error < 0.995 * least:
            best, least = scales, error
    return best


def _round(weight: Tensor, grid: Grid) -> Tensor:
    """To the nearest level, the largest of a group on the lowest."""
    x = weight.reshape(len(weight), -1, grid.group)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    steps = torch.where(-low > high, low, high) / grid.lowest
    levels = grid.round(divide(x, steps))
    return (levels * steps).reshape(weight.shape)
