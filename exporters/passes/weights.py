"""Declare the initializers that lowered operators read, and how they are filled."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.quantize.losses import measure_packed
from exporters.quantize.pack import choose_levels, dequantize, pack, unpack
from exporters.quantize.plan import Rounding, TensorPlan
from exporters.quantize.stored import round_float
from exporters.weight_book import Array, Measure, Slot
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import WeightSpec, list_weights

# MatMulNBits and QMoE: activations are rounded to int8, which is 5 times faster than
# the float path on AVX2 (onnxruntime 1.32.0; leaving it unset selects the slow one).
INT8_ACTIVATIONS = 4

# Numbers encoded at once: they and their copies stay in a core's cache.
_PIECE = 1 << 16
# Normal float16 numbers are this close to what they stand for.
_HALF_ERROR = np.float32(2**-10)
FLOATS = {32: ir.DataType.FLOAT, 16: ir.DataType.FLOAT16}


def weight_shape(draft: Draft, name: str) -> tuple[int, ...]:
    """A checkpoint tensor's shape, [out, in]."""
    return _list_shapes(draft.config)[name]


@functools.lru_cache(maxsize=4)
def _list_shapes(config: Lfm2Config) -> dict[str, tuple[int, ...]]:
    return {weight.name: weight.shape for weight in list_weights(config)}


def exact_weight(draft: Draft, name: str) -> ir.Value:
    """A float32 initializer holding the tensor as it is."""
    return _declare_float(draft, name, ir.DataType.FLOAT)


def plain_weight(draft: Draft, name: str) -> ir.Value:
    """An initializer holding the tensor in the type that the graph computes in."""
    return _declare_float(draft, name, draft.dtype)


def float_weight(rewriter: Rewriter, name: str) -> ir.Value:
    """The tensor in the type that the graph computes in, through a Cast where it is stored
    otherwise."""
    draft = rewriter.draft
    dtype = FLOATS[draft.plan[name].bits]
    stored = _declare_float(draft, name, dtype)
    if dtype == draft.dtype:
        return stored
    cast: ir.Value = rewriter.op("Cast", [stored], to=draft.dtype)
    return cast


def _declare_float(draft: Draft, name: str, dtype: ir.DataType) -> ir.Value:
    stored = f"{name}.fp{dtype.bitwidth}"
    is_new = stored not in draft.book.declared
    value = draft.book.declare(draft.graph, stored, weight_shape(draft, name), dtype)
    if is_new:
        draft.book.fill([name], lambda w: [to_float(w, dtype, name)], Slot(stored))
    return value


def to_float(weight: Array, dtype: ir.DataType, name: str) -> Array:
    """The weight in `dtype`.

    Raises:
        ExportError: a number is outside its range.
    """
    with np.errstate(over="ignore"):
        stored = weight.astype(dtype.numpy())
    if not np.isfinite(stored).all():
        raise ExportError(
            f"{name} holds {np.abs(weight).max():g}, beyond the range of {dtype.name.lower()}; "
            "export with --precision fp32 or int8"
        )
    return stored


def quantized_weight(draft: Draft, name: str) -> tuple[ir.Value, ir.Value, tuple[int, int]]:
    """MatMulNBits' bytes [N, K/group, group*bits/8] and scales [N, K/group], and (N, K).

    Scales are of the type that the graph computes in.
    """
    plan, (rows, columns) = draft.plan[name], weight_shape(draft, name)
    groups = columns // plan.group
    names = f"{name}.q{plan.bits}", f"{name}.scales"
    is_new = names[0] not in draft.book.declared
    blob = (rows, groups, plan.group * plan.bits // 8)
    packed = draft.book.declare(draft.graph, names[0], blob, ir.DataType.UINT8)
    scales = draft.book.declare(draft.graph, names[1], (rows, groups), draft.dtype)
    if is_new:
        encode = encoder_for(draft.dtype, plan)
        measure = measure_unless_recovered(
            plan, lambda w, kept: [measure_packed(w[0], kept[0], kept[1], plan.bits)]
        )
        draft.book.fill([name], encode, *map(Slot, names), measure=measure)
    return packed, scales, (rows, columns)


def quantized_table(draft: Draft, name: str) -> tuple[ir.Value, ir.Value]:
    """The same bytes as GatherBlockQuantized reads them: [N, K * bits / 8]."""
    packed, scales, (rows, columns) = quantized_weight(draft, name)
    table = draft.book.declare(
        draft.graph,
        f"{name_of(packed)}.table",
        (rows, columns * draft.plan[name].bits // 8),
        ir.DataType.UINT8,
        alias_of=name_of(packed),
    )
    return table, scales


def encoder_for(dtype: ir.DataType, plan: TensorPlan) -> Callable[[Array], tuple[Array, Array]]:
    """What encodes rows as planned, with scales of this type."""
    encode = encode_rows if dtype == ir.DataType.FLOAT else encode_rows_half
    return functools.partial(encode, bits=plan.bits, group=plan.group, rounding=plan.rounding)


def measure_unless_recovered(plan: TensorPlan, measure: Measure) -> Measure | None:
    """The same; None where weights come rounded already, and encoding changes nothing."""
    return None if plan.rounding == "recover" else measure


def encode_rows(
    weight: Array, bits: int, group: int, rounding: Rounding = "search"
) -> tuple[Array, Array]:
    """float32 [N, K] -> packed levels and scales, in MatMulNBits' order.

    Rows go through in pieces: in a core's cache the arithmetic is twice as fast, and its
    copies of an embedding of half a gigabyte would set the export's peak memory.
    """
    rows, columns = weight.shape
    packed = np.empty((rows, columns * bits // 8), np.uint8)
    scales = np.empty((rows, columns // group), np.float32)
    at_once = max(1, _PIECE // columns)
    for start in range(0, rows, at_once):
        piece = slice(start, start + at_once)
        levels, scales[piece] = choose_levels(weight[piece], bits, group, rounding)
        packed[piece] = pack(levels, bits)
    return packed, scales


def encode_rows_half(
    weight: Array, bits: int, group: int, rounding: Rounding = "search"
) -> tuple[Array, Array]:
    """As `encode_rows`, with scales in float16."""
    levels, scales = encode_rows(weight, bits, group, rounding)
    stored = _round_scales(scales)
    # Where float16 has few bits left for a small scale, levels are chosen for what it became.
    off = np.abs(stored.astype(np.float32) - scales) > _HALF_ERROR * np.abs(scales)
    for row in np.flatnonzero(off.any(1)):
        steps = np.repeat(stored[row].astype(np.float32), group)
        zero = 1 << (bits - 1)
        nearest = np.rint(np.divide(weight[row], steps, out=np.zeros_like(steps), where=steps != 0))
        levels[row] = pack((np.clip(nearest, -zero, zero - 1) + zero).astype(np.uint8), bits)
    return levels, stored


def round_half(spec: WeightSpec, weight: Array, plan: TensorPlan) -> Array:
    """What `encode_rows_half` stores, as float32: a `Rounder`."""
    if not plan.is_quantized:
        return round_float(weight, plan.bits)
    packed, scales = encode_rows_half(weight, plan.bits, plan.group, plan.rounding)
    return dequantize(unpack(packed, plan.bits), scales.astype(np.float32), plan.bits)


def round_all_half(spec: WeightSpec, weight: Array, plan: TensorPlan) -> Array:
    """As `round_half`, with norms and convolutions in float16, too: what `plain_weight` gives."""
    if spec.role in ("norm", "conv"):
        return round_float(weight, 16)
    return round_half(spec, weight, plan)


def _round_scales(scales: Array) -> Array:
    """float16; none that is not zero becomes so.

    Raises:
        ExportError: one is beyond the range of float16.
    """
    with np.errstate(over="ignore"):
        stored: Array = scales.astype(np.float16)
    if not np.isfinite(stored).all():
        raise ExportError(
            f"a weight needs a scale of {np.abs(scales).max():g}, beyond the range of float16; "
            "export with --precision fp32"
        )
    # Below 2^-14 float16 has ever fewer bits: the next larger one, so that no weight is clipped.
    short = np.abs(scales) - np.abs(stored.astype(np.float32)) > _HALF_ERROR * np.abs(scales)
    away = np.copysign(np.float16(np.inf), stored[short])
    stored[short] = np.nextafter(stored[short], away)
    return stored


def interleave(gate: Array, up: Array) -> Array:
    """w1 and w3, both [I, H] -> [2I, H] with rows gate0, up0, gate1, up1, ..."""
    return np.stack([gate, up], axis=1).reshape(-1, gate.shape[-1])
