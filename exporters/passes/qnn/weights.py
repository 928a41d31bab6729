"""Weights as HTP wants them: [in, out], signed, one positive scale for each output."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.weights import FLOATS, measure_unless_recovered, to_float, weight_shape
from exporters.quantize.losses import Sums, sum_losses
from exporters.quantize.pack import pack, recover, unpack
from exporters.quantize.plan import Rounding, TensorPlan
from exporters.quantize.stored import round_float, round_packed
from exporters.weight_book import Array, Slot
from lfm2_deploy.weights import WeightSpec

_SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
# Scales tried for int4, as parts of the largest; each is then fitted by least squares.
_FACTORS = (1.0, 0.93, 0.86, 0.79)
# Numbers encoded at once: their copies stay in a core's cache.
_PIECE = 1 << 18


def linear_weight(draft: Draft, node: ir.Node, name: str) -> ir.Value:
    """A projection's weight, turned: float32 [K, N] for a MatMul in the place of `node`.

    Names of nodes that other builders give do not depend on how the weight is stored, so that
    ranges seen in one graph are found again in another.
    """
    rows, columns = weight_shape(draft, name)
    plan, rewriter = draft.plan[name], Rewriter(draft, node)
    rewriter.prefix = name
    if not plan.is_quantized:
        return _float_weight(rewriter, name, (columns, rows), FLOATS[plan.bits])
    levels, scales = f"{name}.t.i{plan.bits}", f"{name}.t.i{plan.bits}.scales"
    is_new = levels not in draft.book.declared
    declare = functools.partial(draft.book.declare, draft.graph)
    values = [
        declare(levels, (columns, rows), _SIGNED[plan.bits]),
        declare(scales, (rows,)),
    ]
    if plan.bits == 4:
        # Without zero points onnxruntime-qnn 2.7 takes 4-bit levels for unsigned ones.
        zeros = np.zeros(rows, _SIGNED[4].numpy())
        values.append(draft.book.constant(draft.graph, f"zeros.i4.{rows}", zeros))
    if is_new:
        encode = functools.partial(encode_turned, bits=plan.bits, rounding=plan.rounding)
        measure = measure_unless_recovered(
            plan, lambda w, kept: [measure_turned(w[0], kept[0], kept[1], plan.bits)]
        )
        draft.book.fill([name], encode, Slot(levels), Slot(scales), measure=measure)
    weight: ir.Value = rewriter.op("DequantizeLinear", values, axis=1)
    return weight


def _float_weight(
    rewriter: Rewriter, name: str, shape: tuple[int, int], dtype: ir.DataType
) -> ir.Value:
    book = rewriter.draft.book
    stored = f"{name}.t.{dtype.name.lower()}"
    is_new = stored not in book.declared
    value = book.declare(rewriter.draft.graph, stored, shape, dtype)
    if is_new:
        book.fill([name], lambda w: [to_float(w.T, dtype, name)], Slot(stored))
    if dtype == ir.DataType.FLOAT:
        return value
    cast: ir.Value = rewriter.op("Cast", [value], to=ir.DataType.FLOAT)
    return cast


def encode_turned(weight: Array, bits: int, rounding: Rounding = "search") -> tuple[Array, Array]:
    """float32 [N, K] -> signed levels [K, N], packed, and float32 scales [N]."""
    rows, columns = weight.shape
    levels = np.empty((columns, rows), np.int8)
    scales = np.empty(rows, np.float32)
    at_once = max(1, _PIECE // columns)
    for start in range(0, rows, at_once):
        piece = slice(start, start + at_once)
        part, scales[piece] = _quantize(weight[piece], bits, rounding)
        levels[:, piece] = part.T
    if bits == 8:
        return levels, scales
    return pack(levels.view(np.uint8) & np.uint8(0xF), bits), scales


def measure_turned(weight: Array, levels: Array, scales: Array, bits: int) -> Sums:
    """What `encode_turned` lost of a weight [N, K]."""

    def read(columns: slice) -> Array:
        part = levels[columns]
        if bits == 4:
            # Two's complement in 4 bits: 8 to 15 stand for -8 to -1.
            part = (unpack(part, 4) ^ np.uint8(8)).astype(np.int8) - np.int8(8)
        return part.astype(np.float32) * scales

    return sum_losses(weight.T, read)


def round_turned(spec: WeightSpec, weight: Array, plan: TensorPlan) -> Array:
    """What `encode_turned` stores, as float32; tables lie as the CPU reads them. A `Rounder`."""
    if spec.role in ("embedding", "head"):
        return round_packed(spec, weight, plan)
    if not plan.is_quantized:
        return round_float(weight, plan.bits)
    levels, scales = _quantize(weight, plan.bits, plan.rounding)
    return levels.astype(np.float32) * scales[:, None]


def _quantize(weight: Array, bits: int, rounding: Rounding) -> tuple[Array, Array]:
    """Symmetric levels [N, K] and positive scales [N]; -128 stays unused, as vendors advise."""
    if rounding == "recover":
        return _recover(weight, bits)
    top = (1 << (bits - 1)) - 1
    largest = np.abs(weight).max(1) / np.float32(top)
    largest[largest < np.finfo(np.float32).tiny] = 1  # a row of zeros
    levels, scales = _round(weight, largest, top), largest
    if bits == 8 or rounding == "nearest":
        return levels, scales
    best = np.full(len(weight), np.inf, np.float32)
    for factor in _FACTORS:
        tried = _round(weight, largest * np.float32(factor), top)
        wide = tried.astype(np.float32)
        norm = np.square(wide).sum(1)
        fit = np.divide((wide * weight).sum(1), norm, out=largest.copy(), where=norm > 0)
        error = np.square(weight - wide * fit[:, None]).sum(1)
        better = (error < best) & (fit > 0)
        best[better], scales[better], levels[better] = error[better], fit[better], tried[better]
    return levels, scales


def _recover(weight: Array, bits: int) -> tuple[Array, Array]:
    """Levels and scales that the weights are made of; their grid has no lowest level."""
    raised, steps = recover(weight, bits, weight.shape[1], narrow=True)
    levels = raised.astype(np.int16) - (1 << (bits - 1))
    signs = np.where(steps < 0, -1, 1)
    scales = np.where(steps == 0, 1, np.abs(steps)).astype(np.float32)
    return (levels * signs).astype(np.int8), scales[:, 0]


def _round(weight: Array, scales: Array, top: int) -> Array:
    levels: Array = np.clip(np.rint(weight / scales[:, None]), -top, top).astype(np.int8)
    return levels
