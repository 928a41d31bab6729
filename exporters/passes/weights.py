"""Declare the initializers that lowered operators read, and how they are filled."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.quantize.pack import pack, quantize
from exporters.weight_book import Array, Slot
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import list_weights

# MatMulNBits and QMoE: activations are rounded to int8, which is 5 times faster than
# the float path on AVX2 (onnxruntime 1.32.0; leaving it unset selects the slow one).
INT8_ACTIVATIONS = 4

# Numbers encoded at once: they and their copies stay in a core's cache.
_PIECE = 1 << 16
FLOATS = {32: ir.DataType.FLOAT, 16: ir.DataType.FLOAT16}


def weight_shape(draft: Draft, name: str) -> tuple[int, ...]:
    """A checkpoint tensor's shape, [out, in]."""
    return _list_shapes(draft.config)[name]


@functools.lru_cache(maxsize=4)
def _list_shapes(config: Lfm2Config) -> dict[str, tuple[int, ...]]:
    return {weight.name: weight.shape for weight in list_weights(config)}


def plain_weight(draft: Draft, name: str) -> ir.Value:
    """A float32 initializer holding the tensor as it is."""
    return _declare_float(draft, name, 32)


def float_weight(rewriter: Rewriter, name: str) -> ir.Value:
    """The tensor as float32, through a Cast where it is stored as float16."""
    draft = rewriter.draft
    bits = draft.plan[name].bits
    stored = _declare_float(draft, name, bits)
    if bits == 32:
        return stored
    cast: ir.Value = rewriter.op("Cast", [stored], to=ir.DataType.FLOAT)
    return cast


def _declare_float(draft: Draft, name: str, bits: int) -> ir.Value:
    stored, dtype = f"{name}.fp{bits}", FLOATS[bits]
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
    """MatMulNBits' bytes [N, K/group, group*bits/8] and scales [N, K/group], and (N, K)."""
    plan, (rows, columns) = draft.plan[name], weight_shape(draft, name)
    groups = columns // plan.group
    names = f"{name}.q{plan.bits}", f"{name}.scales"
    is_new = names[0] not in draft.book.declared
    blob = (rows, groups, plan.group * plan.bits // 8)
    packed = draft.book.declare(draft.graph, names[0], blob, ir.DataType.UINT8)
    scales = draft.book.declare(draft.graph, names[1], (rows, groups))
    if is_new:
        encode = functools.partial(encode_rows, bits=plan.bits, group=plan.group)
        draft.book.fill([name], encode, *map(Slot, names))
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


def encode_rows(weight: Array, bits: int, group: int) -> tuple[Array, Array]:
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
        levels, scales[piece] = quantize(weight[piece], bits, group)
        packed[piece] = pack(levels, bits)
    return packed, scales


def interleave(gate: Array, up: Array) -> Array:
    """w1 and w3, both [I, H] -> [2I, H] with rows gate0, up0, gate1, up1, ..."""
    return np.stack([gate, up], axis=1).reshape(-1, gate.shape[-1])
