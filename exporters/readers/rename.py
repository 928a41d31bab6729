"""The canonical graph -> the same graph under a reader's names; the last pass of all.

Enters: a lowered model as onnx-ir has it, its weights by reference. Leaves: a copy in which
states are called and shaped as a reader expects. What is computed stays as it is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.readers.reader import Reader, StateNames
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.states import StateSpec

_AXIS = 2  # of a conv state's columns
_END = np.iinfo(np.int64).max


def rename_for(
    reader: Reader,
    model: ir.Model,
    states: Sequence[StateSpec],
    config: Lfm2Config,
    weights: str,
) -> ir.Model:
    """A copy of the canonical model for another reader.

    Args:
        reader: who will read it.
        model: the canonical model; not changed.
        states: its states.
        config: the model's config.
        weights: where the copy finds the weights file, relative to itself.
    """
    copy = model.clone()
    graph = copy.graph
    windows = {spec.window for spec in states}
    kept = [value for value in graph.outputs if value.name not in windows]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    for spec in states:
        _rename(graph, spec, reader.name_state(spec, config))
    for edit in reader.edits:
        edit(graph)
    common.RemoveUnusedNodesPass()(copy)
    _refer_to(graph, weights)
    return copy


def place_weights(graph: str, weights: str) -> str:
    """Where a graph's file finds the weights file; both relative to the bundle."""
    return posixpath.relpath(weights, posixpath.dirname(graph) or ".")


def _rename(graph: ir.Graph, spec: StateSpec, names: StateNames) -> None:
    past = next(value for value in graph.inputs if value.name == spec.input)
    present = next(value for value in graph.outputs if value.name == spec.output)
    if names.width is None:
        past.name, present.name = names.input, names.output
        return
    extra = names.width - int(spec.shape[_AXIS])
    _narrow(graph, past, names, extra)
    _widen(graph, present, names, extra)


def _narrow(graph: ir.Graph, past: ir.Value, names: StateNames, extra: int) -> None:
    """The wide state comes in, and its last columns go on."""
    wide = _like(past, names.input, names.width)
    bounds = {"starts": extra, "ends": _END, "axes": _AXIS}
    inputs = [_constant(graph, f"narrow/{name}", [value]) for name, value in bounds.items()]
    node = ir.node("Slice", [wide, *inputs], name=f"{names.input}/narrow")
    node.outputs[0].name = f"{names.input}:narrow"
    ir.convenience.replace_all_uses_with(past, node.outputs[0])
    graph.inputs[graph.inputs.index(past)] = wide
    graph.insert_before(graph[0], node)


def _widen(graph: ir.Graph, present: ir.Value, names: StateNames, extra: int) -> None:
    """Columns that nobody reads, zeros, in front of the state."""
    place = graph.outputs.index(present)
    present.name = f"{names.output}:narrow"
    pads = _constant(graph, "widen/pads", [0, 0, extra, 0, 0, 0])
    wide = _like(present, names.output, names.width)
    graph.append(ir.node("Pad", [present, pads], outputs=[wide], name=f"{names.output}/widen"))
    graph.outputs[place] = wide


def _like(value: ir.Value, name: str, width: int | None) -> ir.Value:
    assert value.shape is not None
    shape = [*value.shape][:_AXIS]
    return ir.Value(name=name, shape=ir.Shape([*shape, width]), type=value.type)


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        graph.initializers[name] = ir.val(name, const_value=tensor)
    return graph.initializers[name]


def _refer_to(graph: ir.Graph, weights: str) -> None:
    """External tensors are shared with the canonical graph, so each is made anew."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                weights, tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=tensor.name,
            )  # fmt: skip
