"""lfm2::Experts -> a graph that runs pieces of tokens through one expert each.

For a layer of any number, since experts of all layers are alike. Rows are gathered, multiplied
piece by piece, and gathered back: DirectML has no scatter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.clean_up import leave_only
from exporters.passes.gpu.linear import Product
from exporters.passes.gpu.plain_experts import Stack, declare_stack, lay_out
from exporters.passes.gpu.routing import narrow
from exporters.passes.gpu.segments import declare
from exporters.passes.lower_experts import layer_of
from lfm2_deploy.gpu_graphs import (
    CHOSEN,
    HIDDEN,
    PIECES,
    PLACES,
    RESIDUAL,
    ROW_COUNT,
    ROWS,
    STEPS,
    WEIGHTS,
    X,
)

_INT = ir.DataType.INT64
_FLOAT = ir.DataType.FLOAT


def leave_experts(multiply: Product, layer: int) -> Callable[[Draft], None]:
    """A pass that leaves one layer's experts, lowered."""

    def leave(draft: Draft) -> None:
        assert draft.config.moe is not None
        chosen_count = draft.config.moe.num_experts_per_tok
        (node,) = (n for n in draft.find("Experts") if layer_of(n) == layer)
        rewriter, tokens = Rewriter(draft, node), (1, STEPS, draft.config.hidden_size)
        ends = {
            X: declare(draft, X, draft.dtype, tokens),
            RESIDUAL: declare(draft, RESIDUAL, draft.dtype, tokens),
            ROWS: declare(draft, ROWS, _INT, (ROW_COUNT,)),
            CHOSEN: declare(draft, CHOSEN, _INT, (PIECES,)),
            PLACES: declare(draft, PLACES, _INT, (STEPS, chosen_count)),
            WEIGHTS: declare(draft, WEIGHTS, _FLOAT, (STEPS, chosen_count)),
        }
        stack = declare_stack(rewriter)
        run = _run_floats if stack.scales is None else functools.partial(_run_packed, multiply)
        x = rewriter.op("Reshape", [ends[X], rewriter.ints(-1, draft.config.hidden_size)])
        rows = rewriter.op("Gather", [x, ends[ROWS]], axis=0)
        answers = run(rewriter, stack, rows, ends[CHOSEN])
        hidden = _add_up(rewriter, answers, ends)
        hidden.name, hidden.type = HIDDEN, ir.TensorType(draft.dtype)
        hidden.shape = ir.Shape(tokens)
        leave_only(draft, list(ends.values()), [hidden])

    return leave


def _run_floats(rewriter: Rewriter, stack: Stack, rows: ir.Value, chosen: ir.Value) -> ir.Value:
    """All pieces in two batched products; [PIECES * C, H] -> the same."""
    op, hidden = rewriter.op, rewriter.draft.config.hidden_size
    first, second = (op("Gather", [v, chosen], axis=0) for v in (stack.first, stack.second))
    pieces = op("Reshape", [rows, rewriter.ints(PIECES, -1, hidden)])
    y = op("MatMul", [_gate(rewriter, op("MatMul", [pieces, first])), second])
    answers: ir.Value = op("Reshape", [y, rewriter.ints(-1, hidden)])
    return answers


def _run_packed(
    multiply: Product, rewriter: Rewriter, stack: Stack, rows: ir.Value, chosen: ir.Value
) -> ir.Value:
    """Two products a piece: MatMulNBits knows no batch of matrices."""
    op = rewriter.op
    split = functools.partial(op, "Split", outputs=PIECES, axis=0, num_outputs=PIECES)
    pieces = zip(split([rows]), split([chosen]), strict=True)
    answers: ir.Value = op("Concat", [_run_piece(multiply, rewriter, stack, *p) for p in pieces],
                           axis=0)  # fmt: skip
    return answers


def _run_piece(
    multiply: Product, rewriter: Rewriter, stack: Stack, x: ir.Value, index: ir.Value
) -> ir.Value:
    assert stack.scales is not None
    hidden, wide = rewriter.draft.config.hidden_size, stack.moe.moe_intermediate_size
    first, first_scales, second, second_scales = (
        rewriter.op("Gather", [value, index], axis=0)
        for value in (stack.first, stack.scales[0], stack.second, stack.scales[1])
    )
    pack = functools.partial(lay_out, rewriter, stack.plan)
    inner = multiply(rewriter, x, pack(first, first_scales, (2 * wide, hidden)))
    return multiply(rewriter, _gate(rewriter, inner), pack(second, second_scales, (hidden, wide)))


def _gate(rewriter: Rewriter, x: ir.Value) -> ir.Value:
    op = rewriter.op
    gate, up = op("Split", [x], outputs=2, axis=-1, num_outputs=2)
    inner: ir.Value = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
    return inner


def _add_up(rewriter: Rewriter, answers: ir.Value, ends: dict[str, ir.Value]) -> ir.Value:
    """Each token's answers by weight, and the residual, in float32."""
    op, ints = rewriter.op, rewriter.ints
    wide = functools.partial(op, "Cast", to=_FLOAT)
    own = wide([op("Gather", [answers, ends[PLACES]], axis=0)])
    weights = op("Unsqueeze", [ends[WEIGHTS], ints(-1)])
    total = op("ReduceSum", [op("Mul", [own, weights]), ints(1)], keepdims=0)
    total = op("Unsqueeze", [total, ints(0)])
    return narrow(rewriter, op("Add", [wide([ends[RESIDUAL]]), total]))
