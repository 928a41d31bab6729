"""lfm2::Experts -> a graph that runs pieces of tokens through one expert each, and one that sums.

They serve every layer. Rows are gathered, multiplied piece by piece, and gathered back:
DirectML has no scatter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.clean_up import leave_only
from exporters.passes.gpu.linear import Product
from exporters.passes.gpu.plain_experts import Stack, declare_stack, lay_out
from exporters.passes.gpu.routing import narrow
from exporters.passes.gpu.segments import declare, describe
from exporters.passes.lower_experts import layer_of
from lfm2_deploy.gpu_graphs import (
    ANSWERS,
    CHOSEN,
    HIDDEN,
    PIECES,
    PLACES,
    RESIDUAL,
    ROW_COUNT,
    ROWS,
    STEPS,
    SUMMED,
    WEIGHTS,
    X,
    name_answers,
)

_INT = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


def leave_experts(multiply: Product, layer: int) -> Callable[[Draft], None]:
    """A pass that leaves one layer's experts, lowered."""

    def leave(draft: Draft) -> None:
        rewriter = Rewriter(draft, _find(draft, layer))
        x = declare(X, draft.dtype, (1, STEPS, draft.config.hidden_size))
        rows = declare(ROWS, _INT, (ROW_COUNT,))
        weights = declare(WEIGHTS, _FLOAT, (ROW_COUNT,))
        chosen = declare(CHOSEN, _INT, (PIECES,))
        stack = declare_stack(rewriter)
        run = _run_floats if stack.scales is None else functools.partial(_run_packed, multiply)
        flat = rewriter.op("Reshape", [x, rewriter.ints(-1, draft.config.hidden_size)])
        picked = rewriter.op("Gather", [flat, rows], axis=0)
        column = narrow(rewriter, rewriter.op("Unsqueeze", [weights, rewriter.ints(-1)]))
        answers = run(rewriter, stack, _Rows(picked, column, chosen))
        describe(answers, ANSWERS, draft.dtype, (ROW_COUNT, draft.config.hidden_size))
        leave_only(draft, [x, rows, weights, chosen], [answers])

    return leave


def leave_sum(layer: int) -> Callable[[Draft], None]:
    """A pass that leaves what adds up experts' answers and the residual."""

    def leave(draft: Draft) -> None:
        assert draft.config.moe is not None
        node, hidden = _find(draft, layer), draft.config.hidden_size
        rewriter, tokens = Rewriter(draft, node), (1, STEPS, hidden)
        residual = declare(RESIDUAL, draft.dtype, tokens)
        places = declare(PLACES, _INT, (STEPS, draft.config.moe.num_experts_per_tok))
        answers = [
            declare(name_answers(n), draft.dtype, (ROW_COUNT, hidden)) for n in range(SUMMED)
        ]
        total = _add_up(rewriter, answers, places, residual)
        describe(total, HIDDEN, draft.dtype, tokens)
        leave_only(draft, [*answers, places, residual], [total])

    return leave


def _find(draft: Draft, layer: int) -> ir.Node:
    (node,) = (n for n in draft.find("Experts") if layer_of(n) == layer)
    return node


class _Rows(NamedTuple):
    """All pieces: tokens [PIECES * C, H], weights [PIECES * C, 1], experts [PIECES]."""

    x: ir.Value
    weights: ir.Value
    chosen: ir.Value


def _run_floats(rewriter: Rewriter, stack: Stack, rows: _Rows) -> ir.Value:
    """All pieces in two batched products."""
    op, hidden = rewriter.op, rewriter.draft.config.hidden_size
    first, second = (op("Gather", [v, rows.chosen], axis=0) for v in (stack.first, stack.second))
    x, weights = (
        op("Reshape", [value, rewriter.ints(PIECES, -1, width)])
        for value, width in ((rows.x, hidden), (rows.weights, 1))
    )
    inner = _gate(rewriter, op("MatMul", [x, first]), weights)
    answers: ir.Value = op("Reshape", [op("MatMul", [inner, second]), rewriter.ints(-1, hidden)])
    return answers


def _run_packed(multiply: Product, rewriter: Rewriter, stack: Stack, rows: _Rows) -> ir.Value:
    """Two products a piece: MatMulNBits knows no batch of matrices."""
    pieces = zip(
        *(
            rewriter.op("Split", [value], outputs=PIECES, axis=0, num_outputs=PIECES)
            for value in rows
        ),
        strict=True,
    )
    parts = [_run_piece(multiply, rewriter, stack, _Rows(*piece)) for piece in pieces]
    answers: ir.Value = rewriter.op("Concat", parts, axis=0)
    return answers


def _run_piece(multiply: Product, rewriter: Rewriter, stack: Stack, rows: _Rows) -> ir.Value:
    assert stack.scales is not None
    hidden, wide = rewriter.draft.config.hidden_size, stack.moe.moe_intermediate_size
    first, first_scales, second, second_scales = (
        rewriter.op("Gather", [value, rows.chosen], axis=0)
        for value in (stack.first, stack.scales[0], stack.second, stack.scales[1])
    )
    pack = functools.partial(lay_out, rewriter, stack.plan)
    both = multiply(rewriter, rows.x, pack(first, first_scales, (2 * wide, hidden)))
    inner = _gate(rewriter, both, rows.weights)
    return multiply(rewriter, inner, pack(second, second_scales, (hidden, wide)))


def _gate(rewriter: Rewriter, x: ir.Value, weights: ir.Value) -> ir.Value:
    """SwiGLU, weighed: as wide as an expert, which is narrower than its answer."""
    op = rewriter.op
    gate, up = op("Split", [x], outputs=2, axis=-1, num_outputs=2)
    inner = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
    weighed: ir.Value = op("Mul", [inner, weights])
    return weighed


def _add_up(
    rewriter: Rewriter, answers: list[ir.Value], places: ir.Value, residual: ir.Value
) -> ir.Value:
    op, ints, draft = rewriter.op, rewriter.ints, rewriter.draft
    width = draft.config.hidden_size
    nothing = np.zeros((1, width), draft.dtype.numpy())
    answers = [*answers, draft.book.constant(draft.graph, f"zeros.{width}", nothing)]
    own = op("Gather", [op("Concat", answers, axis=0), places], axis=0)
    total = op("ReduceSum", [op("Cast", [own], to=_FLOAT), ints(1)], keepdims=0)
    both = op("Add", [op("Cast", [residual], to=_FLOAT), op("Unsqueeze", [total, ints(0)])])
    return narrow(rewriter, both)
