"""Rotary position embeddings: the tables that graphs hold or hosts feed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def compute_rotary(theta: float, head_dim: int, length: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 [length, head_dim / 2].

    Angles are float32 products as in transformers, whose rounding the model was trained with.

    Args:
        theta: base of the frequencies.
        head_dim: D.
        length: number of positions.
    """
    angles = np.arange(length, dtype=np.float32)[:, None] * compute_frequencies(theta, head_dim)
    return np.cos(angles), np.sin(angles)


def compute_frequencies(theta: float, head_dim: int) -> FloatArray:
    """Radians for each position, float32 [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: FloatArray = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    return frequencies
