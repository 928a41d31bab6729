"""Arrays <-> the integers that MatMulNBits, QMoE and GatherBlockQuantized read.

Symmetric integers with an implied zero point of 2^(bits-1); along the last axis,
each group has one float32 scale. Two int4 values share a byte, the even one low.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exporters.quantize.plan import Rounding
from lfm2_deploy.errors import ExportError

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

# Steps tried for int4, as parts of the largest. More of them gain less than 1 % of the
# KL divergence (demo model, groups of 32 to 128).
_FACTORS = (1.0, 0.93, 0.86)


def choose_levels(
    weight: FloatArray, bits: int, group: int, rounding: Rounding
) -> tuple[ByteArray, FloatArray]:
    """Levels and scales as a plan wants them chosen; see `quantize`, `round_nearest`, `recover`."""
    if rounding == "recover":
        return recover(weight, bits, group)
    return (quantize if rounding == "search" else round_nearest)(weight, bits, group)


def quantize(weight: FloatArray, bits: int, group: int) -> tuple[ByteArray, FloatArray]:
    """Round each group to 2^bits levels.

    With 8 bits the extreme value lands on the lowest level, -128, which uses every level
    for the larger side. With 4 bits that step (llama.cpp's Q4_0 takes it) and two smaller
    ones are tried, each then fitted to its levels by least squares; the one with the
    smallest squared error is kept. Weights that already lie on such a grid stay there.

    Only element-wise arithmetic and sums in a fixed order: the same bytes on every machine.

    Args:
        weight: float32 [..., K], K a multiple of `group`.
        bits: 4 or 8.
        group: how many neighbours share a scale.

    Returns:
        levels uint8 [..., K] from 0 to 2^bits - 1, scales float32 [..., K/group].
    """
    return _round_groups(weight, bits, group, searches=bits == 4)


def round_nearest(weight: FloatArray, bits: int, group: int) -> tuple[ByteArray, FloatArray]:
    """As `quantize` with 8 bits: the extreme value on the lowest level, others on the nearest."""
    return _round_groups(weight, bits, group, searches=False)


def _round_groups(
    weight: FloatArray, bits: int, group: int, searches: bool
) -> tuple[ByteArray, FloatArray]:
    zero = 1 << (bits - 1)
    # One group a column: all below runs along rows, which numpy does several times as fast.
    x = weight.reshape(-1, group).T.copy()
    low, high = x.min(0), x.max(0)
    steps = (np.where(-low > high, low, high) / -zero).astype(np.float32)
    steps[np.abs(steps) < np.finfo(np.float32).tiny] = 0  # 1 / step would overflow
    x *= np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
    if searches:
        factors, fits = _search(x, zero)
        x /= factors
        steps *= fits
    levels = (_round(x, zero, out=x) + zero).astype(np.uint8)
    rows = weight.shape[:-1]
    return np.ascontiguousarray(levels.T).reshape(weight.shape), steps.reshape(*rows, -1)


def _search(x: FloatArray, zero: int) -> tuple[FloatArray, FloatArray]:
    """The best step of each column of x [group, N], in units of its largest step.

    Returns:
        factors [N]: by what to divide before rounding; fits [N]: by what to multiply after.
    """
    columns = x.shape[1]
    factors, fits = np.ones(columns, np.float32), np.ones(columns, np.float32)
    best = np.full(columns, -1, np.float32)
    levels, products = np.empty_like(x), np.empty_like(x)
    for factor in _FACTORS:
        _round(np.divide(x, np.float32(factor), out=levels), zero, out=levels)
        along = np.multiply(levels, x, out=products).sum(0)
        norm = np.multiply(levels, levels, out=products).sum(0)
        fit = np.divide(along, norm, out=np.zeros_like(along), where=norm > 0)
        gain = along * fit  # the squared error is sum(x^2) - gain
        better = gain > best
        best[better], factors[better], fits[better] = gain[better], factor, fit[better]
    return factors, fits


def _round(x: FloatArray, zero: int, out: FloatArray) -> FloatArray:
    np.rint(x, out=out)
    np.maximum(out, -zero, out=out)
    return np.minimum(out, zero - 1, out=out)


def recover(
    weight: FloatArray, bits: int, group: int, narrow: bool = False
) -> tuple[ByteArray, FloatArray]:
    """The levels and scales that weights are made of already, exactly.

    A group's scale is its extreme value over some level: each is tried in turn, on the groups
    that none before it fitted. A level times a scale that float16 holds is exact in float32, and
    so is the division that takes it apart.

    Args:
        weight, bits, group: as `quantize` takes them.
        narrow: leave the lowest level out.

    Returns:
        As `quantize`; scales are numbers that float16 holds.

    Raises:
        ExportError: a group lies on no such grid.
    """
    zero, rows = 1 << (bits - 1), weight.shape[:-1]
    x = weight.reshape(-1, group)
    extremes = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    levels, steps = np.zeros(x.shape, np.float32), np.zeros(extremes.shape, np.float32)
    left = np.flatnonzero(extremes)
    for level in (*([] if narrow else [-zero]), *range(zero - 1, 0, -1)):
        if not len(left):
            break
        tried = _as_half(extremes[left] / np.float32(level))
        found = np.rint(np.divide(x[left], tried, out=np.zeros_like(x[left]), where=tried != 0))
        inside = (found >= -zero) & (found < zero)
        fits = (inside & (found * tried == x[left])).all(1)
        levels[left[fits]], steps[left[fits]] = found[fits], tried[fits]
        left = left[~fits]
    if len(left):
        raise ExportError(
            f"{len(left)} groups of {group} weights do not lie on a grid of {bits} bits; "
            "this is a bug: please report it"
        )
    raised = (levels + zero).astype(np.uint8)
    return raised.reshape(weight.shape), steps.reshape(*rows, -1)


def _as_half(steps: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return steps.astype(np.float16).astype(np.float32)


def dequantize(levels: ByteArray, scales: FloatArray, bits: int) -> FloatArray:
    """The inverse of `quantize`, up to its rounding: levels [..., K] -> float32 [..., K]."""
    group = levels.shape[-1] // scales.shape[-1]
    centred = levels.astype(np.float32) - (1 << (bits - 1))
    return (centred.reshape(*scales.shape, group) * scales[..., None]).reshape(levels.shape)


def pack(levels: ByteArray, bits: int) -> ByteArray:
    """Levels uint8 [..., K] -> bytes [..., K * bits / 8]."""
    if bits == 8:
        return levels
    return levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))


def unpack(packed: ByteArray, bits: int) -> ByteArray:
    """The exact inverse of `pack`."""
    if bits == 8:
        return packed
    low, high = packed & np.uint8(0xF), packed >> np.uint8(4)
    return np.stack([low, high], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.uint8)
