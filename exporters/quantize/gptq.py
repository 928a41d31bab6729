"""Round a matrix so that its product with the inputs it really has changes least.

GPTQ (arXiv:2210.17323) rounds columns one after another and lets those still to come make
up for what the last ones lost. Here in the equivalent form of LDLQ (arXiv:2307.13304): with
the inputs' second moment H = U D U^T and U unit upper triangular, column j is rounded after
sum_{k<j} E_k U_kj was added to it, E being the errors so far. That needs one Cholesky
factorisation and no inverse. Sweeps of coordinate descent follow (QuantEase,
arXiv:2309.01885), which also fit the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from exporters.quantize.grid import Grid, divide, half, search_steps
from lfm2_deploy.errors import ExportError

# Part of the diagonal's mean that is added to it.
DAMPING = 0.01
# Columns whose corrections are gathered before they are added to the rest.
_BLOCK = 64
# Levels of a group whose changes are gathered before they are told to the rest of it.
_RUN = 16
# Numbers that change places at once.
_PIECE = 1 << 20
_SWEEPS = 2
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Rounded:
    """A rounded matrix.

    Args:
        levels: float32 [N, K], integers.
        steps: float32 [N, G], representable in float16.
    """

    levels: Tensor
    steps: Tensor

    def expand(self) -> Tensor:
        """What it stands for, [N, K]."""
        groups = self.levels.reshape(*self.steps.shape, -1)
        return (groups * self.steps[..., None]).reshape(self.levels.shape)

    def split(self, rows: Sequence[int]) -> list[Rounded]:
        """Parts of so many rows each."""
        parts = zip(*(torch.split(x, list(rows)) for x in (self.levels, self.steps)), strict=True)
        return [Rounded(*part) for part in parts]


def round_nearest(weight: Tensor, moment: Tensor, grid: Grid) -> Rounded:
    """Every number to its nearest level, in steps that suit the inputs' sizes.

    Args:
        weight: float32 [N, K].
        moment: float32 [K, K], the mean of x x^T over the inputs.
        grid: the levels.
    """
    steps = search_steps(weight, moment.diagonal(), grid)
    wide = steps.repeat_interleave(grid.group, 1)
    return Rounded(grid.round(divide(weight, wide)), steps)


def round_feeding_on(weight: Tensor, moment: Tensor, grid: Grid) -> Rounded:
    """GPTQ: columns in order of their inputs' size, then sweeps.

    Args:
        weight: float32 [N, K].
        moment: float32 [K, K], the mean of x x^T over the inputs, damped; more in place where
            that is needed.
        grid: the levels.

    Raises:
        ExportError: the moment is not positive definite, whatever is added to its diagonal.
    """
    diagonal = moment.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True)
    steps = search_steps(weight, diagonal, grid)
    levels = _feed_on(weight, factorize(moment, order), steps, grid, order)
    _sweep(weight, levels, steps, moment, grid)
    return Rounded(levels, steps)


def measure_error(weight: Tensor, rounded: Tensor, moment: Tensor) -> float:
    """What rounding changes of the product, relative to the product.

    Args:
        weight, rounded: float32 [N, K].
        moment: float32 [K, K], the mean of x x^T over the inputs.
    """
    off = weight - rounded
    lost, whole = (float(((x @ moment) * x).sum()) for x in (off, weight))
    return (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0


def damp(moment: Tensor, damping: float | None = None) -> Tensor:
    """The second moment [K, K] with a little more on its diagonal, in place."""
    diagonal = moment.diagonal()
    diagonal += (DAMPING if damping is None else damping) * (float(diagonal.mean()) or 1.0)
    return moment


def factorize(moment: Tensor, order: Tensor) -> Tensor:
    """The upper triangular U with U U^T = moment[order][:, order], [K, K].

    Raises:
        ExportError: there is none, whatever is added to the diagonal.
    """
    turned = order.flip(0)
    for attempt in range(_TRIES):
        lower = _pick(moment, turned)
        # In place: of a width of 11,776 each copy would be half a gibibyte.
        _, fault = torch.linalg.cholesky_ex(lower, out=(lower, torch.empty(0, dtype=torch.int32)))
        if not int(fault):
            return _turn(lower)
        damp(moment, DAMPING * 10**attempt)
    raise ExportError("calibration gave inputs that no weights can be fitted to")


def _turn(square: Tensor) -> Tensor:
    """Rows and columns in reverse order, in place: `flip` would make a copy."""
    flat = square.view(-1)
    size = len(flat)
    for start in range(0, size // 2, _PIECE):
        count = min(_PIECE, size // 2 - start)
        first, last = flat[start : start + count], flat[size - start - count : size - start]
        kept = first.flip(0)
        first.copy_(last.flip(0))
        last.copy_(kept)
    return square


def _pick(moment: Tensor, order: Tensor) -> Tensor:
    """moment[order][:, order], with no more than one copy at a time."""
    picked = moment[order]
    for rows in torch.split(picked, _BLOCK):
        rows.copy_(rows[:, order])
    return picked


def _feed_on(weight: Tensor, upper: Tensor, steps: Tensor, grid: Grid, order: Tensor) -> Tensor:
    """Levels [N, K]; steps [N, G] are given."""
    upper /= upper.diagonal().clone()
    # Columns as rows, so that each lies in one piece.
    exact = weight.T[order]
    wide = steps.T[order // grid.group]
    errors, levels = torch.zeros_like(exact), torch.empty_like(exact)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(order)))
        target = exact[block] + upper[:start, block].T @ errors[:start]
        for j in range(block.start, block.stop):
            wanted = target[j - start] + upper[start:j, j] @ errors[start:j]
            levels[j] = grid.round(divide(wanted, wide[j]))
            errors[j] = exact[j] - levels[j] * wide[j]
    back = torch.empty_like(levels)
    back[order] = levels
    return back.T.contiguous()


def _sweep(weight: Tensor, levels: Tensor, steps: Tensor, moment: Tensor, grid: Grid) -> None:
    """Fit each group's step to its levels and its levels to all others, twice, in place."""
    errors = (weight - Rounded(levels, steps).expand()).T.contiguous()
    slopes = moment @ errors
    turned = levels.T.contiguous()
    groups = len(moment) // grid.group
    for sweep, number in product(range(_SWEEPS), range(groups)):
        group = slice(number * grid.group, (number + 1) * grid.group)
        before = errors[group].clone()
        inner, own = moment[group, group], slopes[group].clone()
        _fit_step(turned[group], steps[:, number], errors[group], own, inner)
        _descend(turned[group], steps[:, number], errors[group], own, inner, grid)
        # In the last sweep nobody asks again for the slopes of groups that had their turn.
        rest = slice(group.stop if sweep == _SWEEPS - 1 else 0, None)
        slopes[rest].addmm_(moment[rest, group], errors[group] - before)
    levels.copy_(turned.T)


def _fit_step(levels: Tensor, step: Tensor, errors: Tensor, slopes: Tensor, inner: Tensor) -> None:
    """The step [N] with the least error for its levels [g, N], where float16 holds one."""
    product = inner @ levels
    curvature, gain = (product * levels).sum(0), (slopes * levels).sum(0)
    wanted = half(step + divide(gain, curvature))
    change = torch.where(wanted == 0, 0.0, wanted - step)
    change = torch.where(change * (change * curvature - 2 * gain) < 0, change, 0.0)
    step += change
    errors -= levels * change
    slopes -= product * change


def _descend(
    levels: Tensor, step: Tensor, errors: Tensor, slopes: Tensor, inner: Tensor, grid: Grid
) -> None:
    """Each level [g, N] in turn to where the error is least, all others as they are.

    Slopes of levels that had their turn are not needed again, and are not kept up to date.
    """
    for start in range(0, len(levels), _RUN):
        stop = min(start + _RUN, len(levels))
        changes = torch.empty_like(levels[start:stop])
        for j in range(start, stop):
            wanted = levels[j] * step + slopes[j] / inner[j, j]
            level = grid.round(divide(wanted, step))
            change = torch.mul(levels[j] - level, step, out=changes[j - start])
            levels[j] = level
            slopes[j + 1 : stop].addr_(inner[j + 1 : stop, j], change)
        errors[start:stop] += changes
        slopes[stop:].addmm_(inner[stop:, start:stop], changes)
