"""Arrays <-> the integers that MatMulNBits, QMoE and GatherBlockQuantized read.

Symmetric integers with an implied zero point of 2^(bits-1); along the last axis,
each group has one float32 scale. Two int4 values share a byte, the even one low.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def quantize(weight: FloatArray, bits: int, group: int) -> tuple[ByteArray, FloatArray]:
    """Round to the nearest of 2^bits levels.

    The extreme value of a group lands on the lowest level, -2^(bits-1), which uses
    every level for the larger side (llama.cpp's Q4_0 does the same).

    Args:
        weight: float32 [..., K], K a multiple of `group`.
        bits: 4 or 8.
        group: how many neighbours share a scale.

    Returns:
        levels uint8 [..., K] from 0 to 2^bits - 1, scales float32 [..., K/group].
    """
    zero = 1 << (bits - 1)
    grouped = weight.reshape(*weight.shape[:-1], -1, group)
    low, high = grouped.min(-1), grouped.max(-1)
    extreme = np.where(-low > high, low, high)
    scales = (extreme / -zero).astype(np.float32)
    scales[np.abs(scales) < np.finfo(np.float32).tiny] = 0  # 1 / scale would overflow
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.rint(grouped * inverse[..., None])
    np.clip(levels + zero, 0, 2 * zero - 1, out=levels)
    return levels.astype(np.uint8).reshape(weight.shape), scales


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
