"""Compressed weights as OpenVINO wants them: signed, symmetric, scales in float16.

No zero points: an NPU takes none, and OpenVINO's importer makes a Subtract of each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from exporters.draft import Rewriter
from exporters.passes.weights import (
    FLOATS,
    encoder_for,
    float_weight,
    measure_unless_recovered,
    to_float,
    weight_shape,
)
from exporters.quantize.losses import Sums, measure_packed
from exporters.quantize.plan import TensorPlan
from exporters.weight_book import Array, Slot

_SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
# Levels carry a zero point of half their range; flipping the highest bit takes it off.
_FLIP = {4: np.uint8(0x88), 8: np.uint8(0x80)}


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a weight [N, K]: from `start` to `end` along axis 0 (outputs) or 1 (inputs)."""

    axis: int
    start: int
    end: int

    def take(self, weight: Array) -> Array:
        """That part of an array."""
        return weight[self.start : self.end] if self.axis == 0 else weight[:, self.start : self.end]


def projection_weight(rewriter: Rewriter, names: Sequence[str], cut: Cut | None = None) -> ir.Value:
    """Projections' weights, joined along their outputs, or a part of one: float32 [N, K]."""
    draft = rewriter.draft
    plan = draft.plan[names[0]]
    shape = [sum(weight_shape(draft, n)[0] for n in names), weight_shape(draft, names[0])[1]]
    prefix = "+".join(names)
    if cut is not None:
        if plan.group == shape[1]:  # one scale a row, also of the part
            plan = replace(plan, group=cut.end - cut.start if cut.axis else shape[1])
        shape[cut.axis] = cut.end - cut.start
        prefix += f".{cut.axis}.{cut.start}"
    if not plan.is_quantized:
        if cut is None and len(names) == 1:
            return float_weight(rewriter, names[0])
        return _joined_floats(rewriter, prefix, [names], tuple(shape), plan, cut)
    levels, scales = _declare(rewriter, prefix, (), (shape[0], shape[1]), plan)
    if levels is not None:
        encode = functools.partial(_encode, plan=plan, cut=cut)
        measure = measure_unless_recovered(
            plan, functools.partial(_measure, bits=plan.bits, cut=cut)
        )
        draft.book.fill(list(names), encode, Slot(levels), Slot(scales), measure=measure)
    return dequantize(rewriter, prefix, (), (shape[0], shape[1]), plan)


def expert_weight(rewriter: Rewriter, prefix: str, sources: Sequence[Sequence[str]]) -> ir.Value:
    """The same matrix of all experts: float32 [E, N, K].

    Args:
        rewriter: of the node that reads it.
        prefix: name to give it.
        sources: for each expert the tensors that are joined along their outputs.
    """
    draft = rewriter.draft
    plan = draft.plan[sources[0][0]]
    rows = sum(weight_shape(draft, name)[0] for name in sources[0])
    columns = weight_shape(draft, sources[0][0])[1]
    count = (len(sources),)
    if not plan.is_quantized:
        return _joined_floats(rewriter, prefix, sources, (*count, rows, columns), plan)
    levels, scales = _declare(rewriter, prefix, count, (rows, columns), plan)
    if levels is not None:
        encode = functools.partial(_encode, plan=plan)
        measure = measure_unless_recovered(plan, functools.partial(_measure, bits=plan.bits))
        for expert, names in enumerate(sources):
            slots = Slot(levels, expert), Slot(scales, expert)
            draft.book.fill(names, encode, *slots, measure=measure)
    return dequantize(rewriter, prefix, count, (rows, columns), plan)


def _joined_floats(
    rewriter: Rewriter,
    prefix: str,
    sources: Sequence[Sequence[str]],
    shape: tuple[int, ...],
    plan: TensorPlan,
    cut: Cut | None = None,
) -> ir.Value:
    """Float weights joined along their outputs: [N, K] of one source, [E, N, K] of experts."""
    book, dtype = rewriter.draft.book, FLOATS[plan.bits]
    name = f"{prefix}.fp{plan.bits}"
    is_new = name not in book.declared
    stored = book.declare(rewriter.draft.graph, name, shape, dtype)
    if is_new:
        join = functools.partial(_join, dtype=dtype, name=name, cut=cut)
        for number, names in enumerate(sources):
            book.fill(list(names), join, Slot(name, number if len(shape) == 3 else None))
    if dtype == ir.DataType.FLOAT:
        return stored
    cast: ir.Value = rewriter.op("Cast", [stored], to=ir.DataType.FLOAT)
    return cast


def _names(prefix: str, plan: TensorPlan) -> tuple[str, str]:
    return f"{prefix}.i{plan.bits}", f"{prefix}.i{plan.bits}.scales"


def _declare(
    rewriter: Rewriter,
    prefix: str,
    count: tuple[int, ...],
    shape: tuple[int, int],
    plan: TensorPlan,
) -> tuple[str | None, str]:
    """Declare levels and scales; the first name is None where they were there already."""
    draft = rewriter.draft
    levels, scales = _names(prefix, plan)
    is_new = levels not in draft.book.declared
    rows, columns = shape
    draft.book.declare(draft.graph, levels, (*count, rows, columns), _SIGNED[plan.bits])
    groups = () if plan.group == columns else (columns // plan.group,)
    draft.book.declare(draft.graph, scales, (*count, rows, *groups), ir.DataType.FLOAT16)
    return (levels if is_new else None), scales


def dequantize(
    rewriter: Rewriter,
    prefix: str,
    count: tuple[int, ...],
    shape: tuple[int, int],
    plan: TensorPlan,
) -> ir.Value:
    """What a declared weight means, in float32."""
    graph = rewriter.draft.graph
    levels, scales = (graph.initializers[name] for name in _names(prefix, plan))
    axis, op = len(count), rewriter.op
    if plan.group == shape[1] and not count:
        half = op("DequantizeLinear", [levels, scales], axis=axis)
    else:
        if plan.group == shape[1]:
            # DequantizeLinear knows one scaled axis or blocks: of experts, a row is a block.
            scales = op("Unsqueeze", [scales, rewriter.ints(-1)])
        half = op("DequantizeLinear", [levels, scales], axis=axis + 1, block_size=plan.group)
    wide: ir.Value = rewriter.op("Cast", [half], to=ir.DataType.FLOAT)
    return wide


def _encode(*weights: Array, plan: TensorPlan, cut: Cut | None = None) -> tuple[Array, Array]:
    """float32 [N, K] each -> signed levels, packed, and float16 scales."""
    if cut is not None:
        weights = tuple(np.ascontiguousarray(cut.take(weight)) for weight in weights)
    encode = encoder_for(ir.DataType.FLOAT16, plan)
    parts = [encode(weight) for weight in weights]
    levels, scales = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    levels ^= _FLIP[plan.bits]
    return levels if plan.bits == 4 else levels.view(np.int8), scales


def _measure(
    weights: Sequence[Array], kept: Sequence[Array], bits: int, cut: Cut | None = None
) -> list[Sums]:
    """What `_encode` lost of each weight; of a cut one, of the part that it took."""
    levels, scales = kept
    found, start = [], 0
    for weight in weights:
        own = weight if cut is None else cut.take(weight)
        rows = slice(start, start + len(own))
        packed = levels[rows].view(np.uint8)
        found.append(measure_packed(own, packed, scales[rows], bits, int(_FLIP[bits])))
        start += len(own)
    return found


def _join(*weights: Array, dtype: ir.DataType, name: str, cut: Cut | None = None) -> tuple[Array]:
    joined = np.concatenate(weights)
    return (to_float(joined if cut is None else cut.take(joined), dtype, name),)
