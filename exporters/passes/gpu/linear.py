"""lfm2::Linear -> MatMulNBits, or MatMul with weights turned at export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import float_weight, quantized_weight, to_float, weight_shape
from exporters.weight_book import Slot
from lfm2_deploy.weights import EMBEDDING

_ROUTER = ".feed_forward.gate.weight"


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in MatMulNBits' layout.

    Args:
        levels: bytes [N, K/group, group*bits/8].
        scales: [N, K/group].
        shape: (N, K).
        bits: 8 or 4.
        group: neighbours that share a scale.
    """

    levels: ir.Value
    scales: ir.Value
    shape: tuple[int, int]
    bits: int
    group: int


# What multiplies by a packed matrix; providers differ in what they want to be told.
Product = Callable[[Rewriter, "ir.Value | None", Packed], ir.Value]


def lower_linear(multiply: Product) -> Callable[[Draft], None]:
    """A pass that lowers every projection as its weight's plan says."""

    def lower(draft: Draft) -> None:
        for node in draft.find("Linear"):
            x, weight = node.inputs
            rewriter, name = Rewriter(draft, node), name_of(weight)
            plan = draft.plan[name]
            if name.endswith(_ROUTER):
                y = _route(rewriter, x, name)
            elif plan.is_quantized:
                packed = Packed(*quantized_weight(draft, name), plan.bits, plan.group)
                y = multiply(rewriter, x, packed)
            elif name == EMBEDDING:
                y = _multiply_by_table(rewriter, x, name)
            else:
                y = rewriter.op("MatMul", [x, turned_weight(draft, name, draft.dtype)])
            rewriter.finish(y)

    return lower


def multiply_packed(rewriter: Rewriter, x: ir.Value | None, packed: Packed) -> ir.Value:
    """MatMulNBits with scales alone: its zero point is half the range.

    No accuracy level: at 4 WebGPU may round a prompt's activations to 8 bits
    (CanApplyDP4AMatrixMatMulNBits in onnxruntime), which is faster on a GPU; how much could not
    be measured. Without it prompts are read as exactly as tokens are decoded.
    """
    return _multiply(rewriter, x, packed, None)


def multiply_with_zero_points(rewriter: Rewriter, x: ir.Value | None, packed: Packed) -> ir.Value:
    """MatMulNBits that is told its zero points in 8 bits.

    What DirectML takes for them in 8 bits where they are absent is tested by nobody; in 4 bits
    onnxruntime's own tests do. Given, they must be an even number for each row: the kernel
    rounds up (DmlOperatorMatMulNBits.cpp, onnxruntime 1.30).
    """
    if packed.bits == 4:
        return _multiply(rewriter, x, packed, None)
    rows, columns = packed.shape
    count = rows * columns // packed.group
    draft, name = rewriter.draft, f"zero_points.{count}"
    is_new = name not in draft.book.declared
    points = draft.book.declare(draft.graph, name, (count,), ir.DataType.UINT8)
    if is_new:
        draft.book.fill((), lambda: [np.full(count, 128, np.uint8)], Slot(name))
    return _multiply(rewriter, x, packed, points)


def _multiply(
    rewriter: Rewriter, x: ir.Value | None, packed: Packed, zero_points: ir.Value | None
) -> ir.Value:
    rows, columns = packed.shape
    inputs = [x, packed.levels, packed.scales, *([] if zero_points is None else [zero_points])]
    y: ir.Value = rewriter.op(
        "MatMulNBits", inputs, domain=MICROSOFT,
        K=columns, N=rows, bits=packed.bits, block_size=packed.group,
    )  # fmt: skip
    return y


def turned_weight(draft: Draft, name: str, dtype: ir.DataType) -> ir.Value:
    """A projection's weight as MatMul reads it, [K, N]."""
    stored = f"{name}.turned.fp{dtype.bitwidth}"
    is_new = stored not in draft.book.declared
    rows, columns = weight_shape(draft, name)
    value = draft.book.declare(draft.graph, stored, (columns, rows), dtype)
    if is_new:
        draft.book.fill(
            [name],
            lambda w: [to_float(np.ascontiguousarray(w.T), dtype, name)],
            Slot(stored),
        )
    return value


def _route(rewriter: Rewriter, x: ir.Value | None, name: str) -> ir.Value:
    """A router's product, in float32: rounding changes which expert runs."""
    draft = rewriter.draft
    if draft.dtype != ir.DataType.FLOAT:
        x = rewriter.op("Cast", [x], to=ir.DataType.FLOAT)
    y: ir.Value = rewriter.op("MatMul", [x, turned_weight(draft, name, ir.DataType.FLOAT)])
    return y


def _multiply_by_table(rewriter: Rewriter, x: ir.Value | None, name: str) -> ir.Value:
    """The head, where it is the embedding's table: Gemm reads that as it lies, [V, H]."""
    rows, columns = weight_shape(rewriter.draft, name)
    flat = rewriter.op("Reshape", [x, rewriter.ints(-1, columns)])
    y = rewriter.op("Gemm", [flat, float_weight(rewriter, name)], transB=1)
    logits: ir.Value = rewriter.op("Reshape", [y, rewriter.ints(1, -1, rows)])
    return logits
