"""Integers by hand, and there and back again."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.passes.weights import encode_rows
from exporters.quantize.pack import (
    FloatArray,
    choose_levels,
    dequantize,
    pack,
    quantize,
    recover,
    unpack,
)
from lfm2_deploy.errors import ExportError


def normal(*shape: int) -> FloatArray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def row(*values: float) -> FloatArray:
    return np.array([values], np.float32)


def test_even_value_takes_the_low_half_of_a_byte() -> None:
    levels = np.array([[1, 2, 15, 0]], np.uint8)
    assert pack(levels, 4).tolist() == [[0x21, 0x0F]]
    assert unpack(np.array([[0x21, 0x0F]], np.uint8), 4).tolist() == levels.tolist()


def test_every_byte_unpacks_and_packs_to_itself() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(4, 64)
    assert unpack(every, 4).max() == 15
    np.testing.assert_array_equal(pack(unpack(every, 4), 4), every)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(64,), (3, 32), (2, 3, 64)])
def test_unpack_is_the_inverse_of_pack(bits: int, shape: tuple[int, ...]) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << bits, shape).astype(np.uint8)
    packed = pack(levels, bits)
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    unpacked = unpack(packed, bits)
    assert packed.dtype == unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, levels)


def test_negative_extreme_takes_the_lowest_level() -> None:
    levels, scales = quantize(row(-128, 127, 51.4, 0), bits=8, group=4)
    assert scales.tolist() == [[1.0]]
    assert levels.tolist() == [[0, 255, 179, 128]]


def test_positive_extreme_takes_the_lowest_level_with_a_negative_scale() -> None:
    levels, scales = quantize(row(256, -254, -6.5, 0), bits=8, group=4)
    assert scales.tolist() == [[-2.0]]
    assert levels.tolist() == [[0, 255, 131, 128]]
    assert dequantize(levels, scales, 8).tolist() == [[256, -254, -6, 0]]


def test_mirror_of_the_extreme_is_clipped_by_one_step() -> None:
    # 8-bit integers reach from -128 to 127.
    levels, scales = quantize(row(128, -128), bits=8, group=2)
    assert dequantize(levels, scales, 8).tolist() == [[128, -127]]


def test_weights_on_a_grid_of_16_levels_stay_on_it() -> None:
    weight = np.array([[8, 0, -7, 3], [-80, 0, 0, 70], [0, 0, 0, 0]], np.float32) / 4
    levels, scales = quantize(weight, bits=4, group=4)
    # -0.25 reaches from 2 down to -1.75, as the lowest level of 16 is -8 and the highest 7.
    assert scales.tolist() == [[-0.25], [2.5], [0.0]]
    np.testing.assert_array_equal(dequantize(levels, scales, 4), weight)


def test_each_group_along_the_last_axis_has_its_own_scale() -> None:
    weight = np.array([[8, 0, 0.5, 0], [-80, 0, 0, 0]], np.float32)
    levels, scales = quantize(weight, bits=4, group=2)
    assert scales.tolist() == [[-1.0, -0.0625], [10.0, 0.0]]
    np.testing.assert_array_equal(dequantize(levels, scales, 4), weight)


def test_int8_error_is_half_a_step_but_where_the_far_end_is_clipped() -> None:
    weight = normal(40, 96)
    levels, scales = quantize(weight, 8, group=32)
    assert levels.dtype == np.uint8
    assert levels.shape == weight.shape
    assert scales.shape == (40, 3)
    steps = np.repeat(scales, 32, axis=1)
    error = np.abs(dequantize(levels, scales, 8) - weight) / np.abs(steps)
    # In steps, with float32's rounding of up to 128 of them.
    half = 0.5 + 1e-5
    clipped = weight / steps > 127.5
    assert error[~clipped].max() <= half
    assert error.max() <= 1 + 1e-5
    # Rounding is really to the nearest: errors spread over the half step.
    assert error[~clipped].mean() == pytest.approx(0.25, abs=0.02)


def round_to_largest_step(weight: FloatArray, group: int) -> FloatArray:
    """int4 as llama.cpp's Q4_0 does it: the extreme value takes the lowest level."""
    grouped = weight.reshape(-1, group)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[:, None], -1)
    step = largest / np.float32(-8)
    return (np.clip(np.rint(grouped / step), -8, 7) * step).reshape(weight.shape)


def test_int4_error_of_every_group_is_at_most_that_of_the_largest_step() -> None:
    weight = normal(40, 128)
    ours = ((dequantize(*quantize(weight, 4, 64), 4) - weight) ** 2).reshape(-1, 64).sum(-1)
    plain = ((round_to_largest_step(weight, 64) - weight) ** 2).reshape(-1, 64).sum(-1)
    # float32 sums of 64 squares.
    assert (ours <= plain * (1 + 1e-5)).all()
    # On normal numbers the search gains a tenth; 1 % would mean that it hardly searches.
    assert ours.sum() < 0.95 * plain.sum()


def test_int4_scale_is_the_least_squares_one_for_its_levels() -> None:
    weight = normal(40, 128)
    levels, scales = quantize(weight, 4, 64)
    centred = (levels.astype(np.float64) - 8).reshape(40, 2, 64)
    best = (centred * weight.reshape(40, 2, 64)).sum(-1) / (centred**2).sum(-1)
    np.testing.assert_allclose(scales, best, rtol=1e-5)  # float32 sums of 64 products


def test_extreme_of_each_int8_group_is_kept_exactly() -> None:
    weight = normal(40, 96)
    kept = dequantize(*quantize(weight, 8, group=32), 8)
    largest = np.abs(weight).reshape(40, 3, 32).argmax(-1)[..., None]
    original, back = (
        np.take_along_axis(a.reshape(40, 3, 32), largest, axis=-1) for a in (weight, kept)
    )
    np.testing.assert_array_equal(back, original)


def test_quantizing_again_changes_nothing() -> None:
    once = dequantize(*quantize(normal(4, 64), 8, group=32), 8)
    np.testing.assert_array_equal(dequantize(*quantize(once, 8, group=32), 8), once)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    levels, scales = quantize(np.zeros((2, 64), np.float32), bits, group=32)
    assert not scales.any()
    assert (levels == 1 << (bits - 1)).all()
    assert not dequantize(levels, scales, bits).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("largest", [1e-45, 1e-39, 1e-37, 1e30, 3e38])
def test_values_at_the_ends_of_float32_are_kept_without_a_warning(
    bits: int, largest: float
) -> None:
    weight = (largest * np.linspace(-1, 1, 32)).astype(np.float32)[None]
    weight[0, 5] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        levels, scales = quantize(weight, bits, group=32)
    step = largest / (1 << (bits - 1))
    # Half a step, or one at the far end. Where a step is below float32's smallest normal
    # number, 1.2e-38, all are zeros: none is above 128 steps.
    error = np.abs(dequantize(levels, scales, bits) - weight)
    assert error.max() <= max(1.01 * step, 128 * 1.2e-38)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_pieces_encode_as_in_one(bits: int) -> None:
    weight = normal(2050, 32)  # two pieces and a bit
    packed, scales = encode_rows(weight, bits, group=32)
    expected: tuple[NDArray[np.uint8], FloatArray] = quantize(weight, bits, group=32)
    np.testing.assert_array_equal(packed, pack(expected[0], bits))
    np.testing.assert_array_equal(scales, expected[1])


def test_a_weight_of_one_group_is_left_as_it_was() -> None:
    # Its transpose is contiguous already: without a copy, rounding would write into it.
    weight = normal(1, 32)
    before = weight.copy()
    quantize(weight, 4, group=32)
    np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("exponent", [0, -7, -13])
def test_recovered_levels_mean_the_same_numbers_exactly(bits: int, exponent: int) -> None:
    source, zero = np.random.default_rng(bits), 1 << (bits - 1)
    # Steps down to where float16 has fewer bits, of both signs; narrow and full ranges of levels.
    steps = source.normal(size=(64, 4)).astype(np.float16) * np.float16(2.0**exponent)
    reach = source.integers(1, zero + 1, (64, 4, 1))
    levels = source.integers(-reach, np.minimum(reach, zero - 1), (64, 4, 32), endpoint=True)
    weight = (levels * steps[..., None].astype(np.float32)).astype(np.float32).reshape(64, 128)
    found, scales = recover(weight, bits, group=32)
    np.testing.assert_array_equal(dequantize(found, scales, bits), weight)
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert int(found.max()) <= 2 * zero - 1


def test_narrow_grid_is_recovered_without_its_lowest_level() -> None:
    weight = np.float32(0.5) * np.array([[4, -2, 2, 0]], np.float32)
    assert recover(weight, 4, 4)[0].min() == 0  # a step of half the size fits as well
    levels, scales = recover(weight, 4, 4, narrow=True)
    assert levels.min() > 0
    np.testing.assert_array_equal(dequantize(levels, scales, 4), weight)


def test_weights_off_every_grid_are_not_taken_for_others() -> None:
    with pytest.raises(ExportError, match="1 groups of 4 weights do not lie on a grid of 4 bits"):
        recover(np.array([[1, 0.5, 0.25, 0.1], [8, 4, 2, 1]], np.float32), 4, 4)


def test_nearest_rounding_puts_the_extreme_on_the_lowest_level() -> None:
    levels, scales = choose_levels(row(-8, 7.4, 0.6, 0), 4, 4, "nearest")
    assert levels.tolist() == [[0, 15, 9, 8]]
    assert scales.tolist() == [[1]]
