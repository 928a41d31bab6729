"""Cut a mixture of experts into static graphs; `lfm2_deploy/static_graphs.py` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.clean_up import leave_only
from exporters.passes.lower_experts import layer_of, next_sum
from exporters.passes.ov.linear import matmul
from exporters.passes.ov.weights import projection_weight
from lfm2_deploy.static_graphs import (
    EXPERT_ROWS,
    name_expert_input,
    name_expert_output,
    name_hidden,
    name_probabilities,
    name_residual,
    name_scores,
)


def cut_segments(steps: int, dtype: ir.DataType) -> Callable[[Draft], None]:
    """A pass that ends a segment before each layer of experts, and begins another after it."""

    def cut(draft: Draft) -> None:
        shape = (1, steps, draft.config.hidden_size)
        for node in draft.find("Experts"):
            layer, x = layer_of(node), node.inputs[0]
            add, residual = next_sum(node)
            for value, name in (
                (residual, name_residual(layer)),
                (x, name_expert_input(layer)),
            ):
                assert value is not None
                _add_output(draft, value, name, shape, dtype)
            hidden = _add_input(draft, add, name_hidden(layer), shape, dtype)
            Rewriter(draft, add).finish(hidden)
            # Not `remove_unused`: what the frame has ready for later passes is unused so far.
            draft.graph.remove(node, safe=True)

    return cut


def only_routers(
    dtype: ir.DataType, layers: Sequence[int] | None = None
) -> Callable[[Draft], None]:
    """A pass that leaves the routers of some layers, or of all."""

    def cut(draft: Draft) -> None:
        nodes = [n for n in draft.find("Experts") if layers is None or layer_of(n) in layers]
        inputs: list[ir.Value] = []
        outputs: list[ir.Value] = []
        shape = (1, "sequence_length", draft.config.hidden_size)
        for node in nodes:
            layer, (x, scores, probabilities) = layer_of(node), node.inputs[:3]
            assert x is not None
            _replace_router_input(draft, x, layer, shape, dtype, inputs)
            for value, name in (
                (scores, name_scores(layer)),
                (probabilities, name_probabilities(layer)),
            ):
                assert value is not None
                outputs.append(_tap(draft, value, name, ir.DataType.FLOAT))
        leave_only(draft, inputs, outputs)

    return cut


def only_whole_experts(layers: Sequence[int], dtype: ir.DataType) -> Callable[[Draft], None]:
    """A pass that leaves the routers and experts of some layers, routed in the graph."""

    def cut(draft: Draft) -> None:
        inputs: list[ir.Value] = []
        outputs: list[ir.Value] = []
        shape = (1, "sequence_length", draft.config.hidden_size)
        for node in draft.find("Experts"):
            layer, x = layer_of(node), node.inputs[0]
            if layer not in layers:
                continue
            assert x is not None
            _replace_router_input(draft, x, layer, shape, dtype, inputs)
            outputs.append(_tap(draft, node.outputs[0], name_expert_output(layer), dtype))
        leave_only(draft, inputs, outputs)

    return cut


# (rewriter, x [..., K], name of a projection) -> [..., N].
Project = Callable[[Rewriter, ir.Value, str], ir.Value]


def _project(rewriter: Rewriter, x: ir.Value, name: str) -> ir.Value:
    return matmul(rewriter, x, projection_weight(rewriter, [name]))


def only_experts(
    layer: int,
    dtype: ir.DataType,
    project: Project = _project,
    experts: Sequence[int] | None = None,
) -> Callable[[Draft], None]:
    """A pass that leaves one layer's experts, or some, each a graph of its own, already lowered.

    Args:
        layer: its number.
        dtype: at the graphs' edge.
        project: lowers a projection.
        experts: their numbers; None for all.
    """

    def cut(draft: Draft) -> None:
        assert draft.config.moe is not None
        (node,) = (n for n in draft.find("Experts") if layer_of(n) == layer)
        prefix = name_of(node.inputs[3]).removesuffix(".0.w1.weight")
        shape = (1, EXPERT_ROWS, draft.config.hidden_size)
        inputs, outputs = [], []
        for expert in range(draft.config.moe.num_experts) if experts is None else experts:
            x = ir.Value(
                name=name_expert_input(layer, expert),
                shape=ir.Shape(shape),
                type=ir.TensorType(dtype),
            )
            rewriter = Rewriter(draft, node)
            # Several rewriters of one node would give their nodes the same names.
            rewriter.prefix = f"{node.name}/{expert}"
            y = _lower_expert(rewriter, x, f"{prefix}.{expert}", dtype, project)
            y.name, y.type = name_expert_output(layer, expert), ir.TensorType(dtype)
            y.shape = ir.Shape(shape)
            inputs.append(x)
            outputs.append(y)
        leave_only(draft, inputs, outputs)

    return cut


def _lower_expert(
    rewriter: Rewriter, x: ir.Value, prefix: str, dtype: ir.DataType, project: Project
) -> ir.Value:
    op = rewriter.op
    wide = op("Cast", [x], to=ir.DataType.FLOAT)
    gate, up = (project(rewriter, wide, f"{prefix}.{w}.weight") for w in ("w1", "w3"))
    gated = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
    y = project(rewriter, gated, f"{prefix}.w2.weight")
    cast: ir.Value = op("Cast", [y], to=dtype)
    return cast


def _replace_router_input(
    draft: Draft,
    x: ir.Value,
    layer: int,
    shape: Sequence[int | str],
    dtype: ir.DataType,
    inputs: list[ir.Value],
) -> None:
    """Let router and experts read a graph input instead of what the layer before gives."""
    value = ir.Value(
        name=name_expert_input(layer), shape=ir.Shape(shape), type=ir.TensorType(dtype)
    )
    inputs.append(value)
    first = x.producer()
    assert first is not None
    wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}/Cast")
    wide.outputs[0].name = f"{value.name}.wide"
    draft.graph.insert_after(first, wide)
    x.replace_all_uses_with(wide.outputs[0])


def _tap(draft: Draft, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
    """An output of that name for a value."""
    producer = value.producer()
    assert producer is not None
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/Cast")
    draft.graph.insert_after(producer, node)
    (out,) = node.outputs
    out.name, out.type = name, ir.TensorType(dtype)
    return out


def _add_output(
    draft: Draft, value: ir.Value, name: str, shape: Sequence[int], dtype: ir.DataType
) -> None:
    out = _tap(draft, value, name, dtype)
    out.shape = ir.Shape(shape)
    draft.graph.outputs.append(out)


def _add_input(
    draft: Draft, before: ir.Node, name: str, shape: Sequence[int], dtype: ir.DataType
) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    draft.graph.inputs.append(value)
    wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
    wide.outputs[0].name = f"{name}.wide"
    draft.graph.insert_before(before, wide)
    return wide.outputs[0]
