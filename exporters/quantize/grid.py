"""Symmetric grids: which numbers a stored matrix can hold, and the steps that suit one best.

A group of neighbours along the input axis shares a step; a value is a step times an integer
level. Steps are numbers that float16 holds, so that every target stores them exactly, and a
product of both fits float32 without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporters.quantize.plan import TensorPlan

# Steps tried, as parts of the one that puts the largest value on the lowest level. Above 1
# the largest lands inside; 8/7 is that of the level next to it.
_FACTORS = tuple(1.16 - 0.03 * i for i in range(16))
# Numbers tried at once: as many as stay in a processor's cache from try to try. 1 << 22 took
# twice the time.
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels of a stored matrix.

    Args:
        bits: 4 or 8.
        group: how many neighbours share a step.
        narrow: leave the lowest level out.
    """

    bits: int
    group: int
    narrow: bool = False

    @classmethod
    def of(cls, plan: TensorPlan) -> Grid:
        """A plan's."""
        return cls(plan.bits, plan.group, plan.narrow_range)

    @property
    def lowest(self) -> int:
        """The lowest level."""
        return -self.highest if self.narrow else -self.highest - 1

    @property
    def highest(self) -> int:
        """The highest level."""
        return (1 << (self.bits - 1)) - 1

    def round(self, x: Tensor) -> Tensor:
        """The nearest levels, in place."""
        return x.round_().clamp_(self.lowest, self.highest)


def half(steps: Tensor) -> Tensor:
    """Steps that float16 holds, none of which is zero unless it was."""
    stored = steps.half().float()
    smallest = 2.0**-24
    return torch.where((stored == 0) & (steps != 0), steps.sign() * smallest, stored)


def search_steps(weight: Tensor, importance: Tensor, grid: Grid) -> Tensor:
    """For each group the step whose rounding costs least.

    Args:
        weight: float32 [N, K].
        importance: float32 [K], at least 0: by what the square of a column's error counts.
        grid: the levels.

    Returns:
        float32 [N, K / group], representable in float16; the least error is that of rounding
        to nearest, columns apart.
    """
    rows, columns = weight.shape
    shares = importance.reshape(1, -1, grid.group)
    at_once = max(1, _PIECE // columns)
    parts = [
        _search(weight[start : start + at_once].reshape(-1, columns // grid.group, grid.group),
                shares, grid)
        for start in range(0, rows, at_once)
    ]  # fmt: skip
    return torch.cat(parts)


def _search(x: Tensor, shares: Tensor, grid: Grid) -> Tensor:
    """x [n, G, g], shares [1, G, g] -> steps [n, G]."""
    low, high = x.amin(-1), x.amax(-1)
    extreme = torch.where(-low > high, low, high)
    best = torch.zeros_like(extreme)
    least = (x.square() * shares).sum(-1)
    ends = (-grid.lowest,) if grid.narrow else (grid.lowest, -grid.lowest)
    for end in ends:
        for factor in _FACTORS:
            steps = extreme / end * factor
            levels = grid.round(divide(x, steps[..., None]))
            weighed = levels * shares
            fit = half(divide((weighed * x).sum(-1), (weighed * levels).sum(-1)))
            error = ((x - levels * fit[..., None]).square() * shares).sum(-1)
            better = error < least
            best, least = torch.where(better, fit, best), torch.where(better, error, least)
    return best


def divide(x: Tensor, by: Tensor) -> Tensor:
    """x / by, and 0 where `by` is."""
    return torch.where(by == 0, 0.0, x / torch.where(by == 0, 1.0, by))
