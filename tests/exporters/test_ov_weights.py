"""Compressed weights for OpenVINO: signed levels, and scales that float16 can hold."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.passes.ov.weights import Cut, _encode
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.errors import ExportError


def decode(levels: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """What OpenVINO makes of them, float64 [N, K]."""
    if bits == 4:
        nibbles = np.stack([levels & 0xF, levels >> 4], axis=-1).reshape(len(levels), -1)
        levels = np.where(nibbles > 7, nibbles.astype(np.int8) - 16, nibbles)
    groups = levels.reshape(*scales.shape, -1).astype(np.float64)
    return (groups * scales[..., None].astype(np.float64)).reshape(len(levels), -1)


@pytest.mark.parametrize("exponent", [0, -8, -12, -16])
@pytest.mark.parametrize(
    ("bits", "group", "worst"), [(8, 64, 0.006), (8, 32, 0.006), (4, 64, 0.16)]
)
def test_small_weights_lose_no_more_than_large_ones(
    bits: int, group: int, worst: float, exponent: int
) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32) * 2.0**exponent
    decoded = decode(*_encode(weight, plan=TensorPlan(bits, group, "")), bits)
    # Half a step is 1/254 or 1/14 of the largest; scales below 2^-14 are rounded themselves.
    share = np.abs(decoded - weight).max() / np.abs(weight).max()
    assert share < worst * (1 if exponent > -16 else 1.6)


def test_weights_below_all_scales_do_not_vanish() -> None:
    weight = np.full((2, 32), 1e-7, np.float32)
    decoded = decode(*_encode(weight, plan=TensorPlan(8, 32, "")), 8)
    np.testing.assert_allclose(decoded, weight, atol=2**-25)


def test_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(ExportError, match="beyond the range of float16"):
        _encode(np.full((2, 32), 1e9, np.float32), plan=TensorPlan(8, 32, ""))


def test_joined_weights_are_each_encoded_alone() -> None:
    first, second = (
        np.random.default_rng(n).normal(size=(4, 32)).astype(np.float32) for n in (1, 2)
    )
    joined = _encode(first, second, plan=TensorPlan(4, 32, ""))
    for number, own in enumerate((first, second)):
        for both, alone in zip(joined, _encode(own, plan=TensorPlan(4, 32, "")), strict=True):
            np.testing.assert_array_equal(both[4 * number : 4 * number + 4], alone)


@pytest.mark.parametrize("axis", [0, 1])
def test_cut_takes_rows_or_columns(axis: int) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = weight[1:3] if axis == 0 else weight[:, 1:3]
    np.testing.assert_array_equal(Cut(axis, 1, 3).take(weight), expected)
