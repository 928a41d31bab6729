"""lfm2::Experts by products that every provider has: gathered for one token, dense for many.

gathered   the K chosen experts' bytes are gathered, and two products do for all of them:
           x [1, H] by [K*2I, H], and what comes of it, weighed, by [H, K*I].
dense      the same two products over all E experts; those not chosen weigh nothing.

Both read the same two tensors, [E, 2I, H] with an expert's gate rows before its up rows, and
[E, H, I]. Bytes and operations of each, and of what was not chosen: docs/gpu.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.gpu.linear import Packed, Product
from exporters.passes.gpu.routing import choose, spread, weigh
from exporters.passes.lower_experts import expert_sources
from exporters.passes.weights import FLOATS, encoder_for, measure_unless_recovered, to_float
from exporters.quantize.losses import Sums, measure_packed
from exporters.quantize.plan import TensorPlan
from exporters.weight_book import Array, Measure, Slot
from lfm2_deploy.config import MoeConfig


@dataclass(frozen=True, slots=True)
class Stack:
    """All experts of a layer.

    Args:
        moe: their sizes.
        plan: how they are stored.
        first: [E, 2I, H] packed, or turned floats [E, H, 2I].
        second: [E, H, I] packed, or turned floats [E, I, H].
        scales: of both, where they are packed.
    """

    moe: MoeConfig
    plan: TensorPlan
    first: ir.Value
    second: ir.Value
    scales: tuple[ir.Value, ir.Value] | None


def lower_gathered_experts(multiply: Product) -> Callable[[Draft], None]:
    """A pass for graphs of one token."""
    return functools.partial(_lower_each, lower=functools.partial(_lower_gathered, multiply))


def lower_dense_experts(multiply: Product) -> Callable[[Draft], None]:
    """A pass for graphs of any number of tokens."""
    return functools.partial(_lower_each, lower=functools.partial(_lower_dense, multiply))


def _lower_each(draft: Draft, lower: Callable[[Rewriter, Stack], ir.Value]) -> None:
    for node in draft.find("Experts"):
        rewriter = Rewriter(draft, node)
        rewriter.finish(lower(rewriter, declare_stack(rewriter)))


def _lower_gathered(multiply: Product, rewriter: Rewriter, stack: Stack) -> ir.Value:
    moe, op = stack.moe, rewriter.op
    chosen = choose(rewriter, moe)
    weights = weigh(rewriter, moe, chosen.probabilities, chosen)
    index = op("Reshape", [chosen.index, rewriter.ints(-1)])

    def pick(value: ir.Value) -> ir.Value:
        picked: ir.Value = op("Gather", [value, index], axis=0)
        return picked

    if stack.scales is None:
        return _multiply_floats(rewriter, pick(stack.first), pick(stack.second), weights)
    scales = (pick(stack.scales[0]), pick(stack.scales[1]))
    some = Stack(moe, stack.plan, pick(stack.first), pick(stack.second), scales)
    return _multiply_packed(rewriter, multiply, some, moe.num_experts_per_tok, weights)


def _lower_dense(multiply: Product, rewriter: Rewriter, stack: Stack) -> ir.Value:
    moe, chosen = stack.moe, choose(rewriter, stack.moe)
    weights = weigh(rewriter, moe, chosen.probabilities, chosen)
    weights = spread(rewriter, moe, weights, chosen)
    if stack.scales is None:
        return _multiply_floats(rewriter, stack.first, stack.second, weights)
    return _multiply_packed(rewriter, multiply, stack, moe.num_experts, weights)


def _multiply_floats(
    rewriter: Rewriter, first: ir.Value, second: ir.Value, weights: ir.Value
) -> ir.Value:
    """Batched products over C experts: first [C, H, 2I], second [C, I, H], weights [1, S, C]."""
    op = rewriter.op
    gate, up = op("Split", [op("MatMul", [rewriter.node.inputs[0], first])], outputs=2, axis=-1,
                  num_outputs=2)  # fmt: skip
    inner = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
    inner = op("Mul", [inner, op("Transpose", [weights], perm=[2, 1, 0])])
    parts = op("MatMul", [inner, second])
    y: ir.Value = op("ReduceSum", [parts, rewriter.ints(0)], keepdims=1)
    return y


def _multiply_packed(
    rewriter: Rewriter, multiply: Product, stack: Stack, count: int, weights: ir.Value
) -> ir.Value:
    """Two products over C experts laid side by side; weights [1, S, C]."""
    assert stack.scales is not None
    op, ints = rewriter.op, rewriter.ints
    hidden, wide = rewriter.draft.config.hidden_size, stack.moe.moe_intermediate_size
    pack = functools.partial(lay_out, rewriter, stack.plan)
    first = pack(stack.first, stack.scales[0], (count * 2 * wide, hidden))
    x = multiply(rewriter, rewriter.node.inputs[0], first)
    x = op("Reshape", [x, ints(1, -1, count, 2 * wide)])
    gate, up = op("Split", [x], outputs=2, axis=-1, num_outputs=2)
    inner = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
    inner = op("Mul", [inner, op("Unsqueeze", [weights, ints(-1)])])
    inner = op("Reshape", [inner, ints(1, -1, count * wide)])
    # An expert's columns lie one after another; the second product wants them side by side.
    levels, scales = (op("Transpose", [v], perm=[1, 0, 2]) for v in (stack.second, stack.scales[1]))
    return multiply(rewriter, inner, pack(levels, scales, (hidden, count * wide)))


def lay_out(
    rewriter: Rewriter,
    plan: TensorPlan,
    levels: ir.Value,
    scales: ir.Value,
    shape: tuple[int, int],
) -> Packed:
    """Bytes and scales of any shape, in order -> a matrix of `shape`."""
    op, ints, (rows, columns) = rewriter.op, rewriter.ints, shape
    groups, size = columns // plan.group, plan.group * plan.bits // 8
    levels = op("Reshape", [levels, ints(rows, groups, size)])
    scales = op("Reshape", [scales, ints(rows, groups)])
    return Packed(levels, scales, shape, plan.bits, plan.group)


def declare_stack(rewriter: Rewriter) -> Stack:
    """The stacked tensors of the node's experts, declared and filled once for all graphs."""
    draft = rewriter.draft
    assert draft.config.moe is not None
    name = name_of(rewriter.node.inputs[3])
    plan, prefix = draft.plan[name], name.removesuffix(".0.w1.weight")
    declare = _declare_packed if plan.is_quantized else _declare_floats
    return declare(draft, draft.config.moe, plan, prefix)


def _declare_packed(draft: Draft, moe: MoeConfig, plan: TensorPlan, prefix: str) -> Stack:
    hidden, wide, group = draft.config.hidden_size, moe.moe_intermediate_size, plan.group
    names = [f"{prefix}.{part}" for part in ("gate_up", "down", "gate_up.scales", "down.scales")]
    is_new = names[0] not in draft.book.declared
    size = plan.bits / 8
    shapes = (
        (2 * wide, int(hidden * size)),
        (hidden, int(wide * size)),
        (2 * wide, hidden // group),
        (hidden, wide // group),
    )
    dtypes = (ir.DataType.UINT8, ir.DataType.UINT8, draft.dtype, draft.dtype)
    values = [
        draft.book.declare(draft.graph, name, (moe.num_experts, *shape), dtype)
        for name, shape, dtype in zip(names, shapes, dtypes, strict=True)
    ]
    encode_rows = encoder_for(draft.dtype, plan)

    def encode(gate: Array, up: Array, down: Array) -> tuple[Array, ...]:
        (first, first_scales), (second, second_scales) = (
            encode_rows(np.concatenate([gate, up])),
            encode_rows(down),
        )
        return first, second, first_scales, second_scales

    def measure(sources: Sequence[Array], kept: Sequence[Array]) -> list[Sums]:
        gate, up, down = sources
        first, second, first_scales, second_scales = kept
        return [
            measure_packed(gate, first[:wide], first_scales[:wide], plan.bits),
            measure_packed(up, first[wide:], first_scales[wide:], plan.bits),
            measure_packed(down, second, second_scales, plan.bits),
        ]

    _fill(draft, moe, prefix, encode, names, is_new, measure_unless_recovered(plan, measure))
    return Stack(moe, plan, values[0], values[1], (values[2], values[3]))


def _declare_floats(draft: Draft, moe: MoeConfig, plan: TensorPlan, prefix: str) -> Stack:
    hidden, wide = draft.config.hidden_size, moe.moe_intermediate_size
    dtype = FLOATS[plan.bits]
    names = [f"{prefix}.{part}.turned" for part in ("gate_up", "down")]
    is_new = names[0] not in draft.book.declared
    first = draft.book.declare(draft.graph, names[0], (moe.num_experts, hidden, 2 * wide), dtype)
    second = draft.book.declare(draft.graph, names[1], (moe.num_experts, wide, hidden), dtype)

    def encode(gate: Array, up: Array, down: Array) -> tuple[Array, ...]:
        joined = np.concatenate([gate, up]).T
        return to_float(joined, dtype, names[0]), to_float(down.T, dtype, names[1])

    _fill(draft, moe, prefix, encode, names, is_new)
    return Stack(moe, plan, first, second, None)


def _fill(
    draft: Draft,
    moe: MoeConfig,
    prefix: str,
    encode: Callable[..., tuple[Array, ...]],
    names: list[str],
    is_new: bool,
    measure: Measure | None = None,
) -> None:
    for expert in range(moe.num_experts if is_new else 0):
        slots = [Slot(name, expert) for name in names]
        draft.book.fill(expert_sources(prefix, expert), encode, *slots, measure=measure)
