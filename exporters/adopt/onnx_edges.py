"""The edges of somebody else's ONNX graph: states and logits, found, renamed and brought to size.

    past_conv.{i} [B, H, L]    -> past.{i}.conv [B, H, L-1]    transformers.js, genai <= 0.14
    past.{i}.conv [B, H, L-1]  as it is                        genai 0.17 and later

A conv state's oldest column of L is read by nothing, so it is left out, and a zero put in its
place: both lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import SourceError
from lfm2_deploy.states import StateSpec, list_states

LOGITS = "logits"
# How a graph may call the number of last positions that logits are wanted of; ours is the first.
KEEP = ("logits_to_keep", "num_logits_to_keep")
_TYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


@dataclass(frozen=True, slots=True)
class State:
    """A state as the graph has it.

    Args:
        spec: as it must be called.
        input, output: as it is called.
        element: ONNX's number of its type.
        width: of a conv state, columns; else 0.
    """

    spec: StateSpec
    input: str
    output: str
    element: int
    width: int


def match_states(graph: GraphProto, config: Lfm2Config, file: Path) -> list[State]:
    """Every state of the model, in our order.

    Raises:
        SourceError: the graph lacks one, or has one of another size than the config says.
    """
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    return [_match(spec, inputs, outputs, config, file) for spec in list_states(config)]


def _match(
    spec: StateSpec,
    inputs: dict[str, ValueInfoProto],
    outputs: dict[str, ValueInfoProto],
    config: Lfm2Config,
    file: Path,
) -> State:
    into, out = _name_states(spec)
    source = next((name for name in into if name in inputs), None)
    target = next((name for name in out if name in outputs), None)
    if source is None or target is None:
        missing = into if source is None else out
        raise SourceError(
            f"{file} has no {' or '.join(missing)}, the {spec.kind} state of layer {spec.layer}: "
            "expected the names of onnxruntime-genai, transformers.js or Liquid AI's exports, and "
            "a config.json of the same model"
        )
    kind = inputs[source].type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    width = _check_shape(spec, shape, config, f"{source} of {file}")
    return State(spec, source, target, kind.elem_type, width)


def _name_states(spec: StateSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a state's input and output may be called."""
    layer, kind = spec.layer, spec.kind
    if kind == "conv":
        return (spec.input, f"past_conv.{layer}"), (spec.output, f"present_conv.{layer}")
    return (spec.input,), (spec.output, f"present_key_values.{layer}.{kind}")


def _check_shape(spec: StateSpec, shape: list[int | None], config: Lfm2Config, what: str) -> int:
    """Columns of a conv state; 0 for keys and values."""
    narrow = config.conv_state_width
    allowed: list[tuple[int | None, ...]]
    if spec.kind == "conv":
        allowed = [(None, config.hidden_size, width) for width in (narrow, narrow + 1)]
    else:
        allowed = [(None, config.num_key_value_heads, None, config.head_dim)]
    fits = [
        form
        for form in allowed
        if len(form) == len(shape)
        and all(None in pair or pair[0] == pair[1] for pair in zip(form, shape, strict=True))
    ]
    if not fits or (spec.kind == "conv" and shape[2] is None):
        seen = ", ".join("?" if size is None else str(size) for size in shape)
        wanted = ", ".join("?" if size is None else str(size) for size in allowed[0])
        raise SourceError(
            f"{what} is [{seen}], expected [{wanted}] as config.json says: take the config of the "
            "very model that was exported"
        )
    return shape[2] or 0 if spec.kind == "conv" else 0


def find_state_type(states: Sequence[State], file: Path) -> str:
    """numpy's name of the type that all states have.

    Raises:
        SourceError: they are of several types, or of one that cannot be kept.
    """
    found = {state.element for state in states}
    if len(found) != 1 or not found <= _TYPES.keys():
        names = ", ".join(sorted(TensorProto.DataType.Name(number) for number in found))
        raise SourceError(
            f"{file} has states of type {names}: expected all float32 or all float16; take "
            "another variant"
        )
    return _TYPES[found.pop()]


def rewrite_states(graph: GraphProto, states: Sequence[State], config: Lfm2Config) -> None:
    """Give states our names, and conv states our width."""
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    for state in states:
        wide = state.width > config.conv_state_width
        if wide:
            _narrow_input(graph, state, inputs[state.input], config)
            _narrow_output(graph, state, outputs[state.output], config)
            continue
        _rename(graph, state.input, state.spec.input)
        inputs[state.input].name = state.spec.input
        _rename(graph, state.output, state.spec.output)
        outputs[state.output].name = state.spec.output


def _narrow_input(
    graph: GraphProto, state: State, value: ValueInfoProto, config: Lfm2Config
) -> None:
    """A column of zeros in front: nobody reads it."""
    pads = _add_constant(graph, f"{state.spec.input}.pads", [0, 0, 1, 0, 0, 0])
    node = helper.make_node(
        "Pad", [state.spec.input, pads], [state.input], name=f"{state.spec.input}/Pad"
    )
    graph.node.insert(0, node)
    _resize(value, state.spec.input, config.conv_state_width)


def _narrow_output(
    graph: GraphProto, state: State, value: ValueInfoProto, config: Lfm2Config
) -> None:
    name = state.spec.output
    start = _add_constant(graph, f"{name}.start", [1])
    end = _add_constant(graph, f"{name}.end", [state.width])
    axis = _add_constant(graph, f"{name}.axis", [2])
    graph.node.append(
        helper.make_node("Slice", [state.output, start, end, axis], [name], name=f"{name}/Slice")
    )
    _resize(value, name, config.conv_state_width)


def _resize(value: ValueInfoProto, name: str, width: int) -> None:
    value.name = name
    value.type.tensor_type.shape.dim[2].dim_value = width


def _add_constant(graph: GraphProto, name: str, values: list[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def rewrite_logits(graph: GraphProto, file: Path) -> None:
    """Logits in float32, whatever the graph computes in.

    Raises:
        SourceError: the graph gives none.
    """
    value = next((output for output in graph.output if output.name == LOGITS), None)
    if value is None:
        raise SourceError(f"{file} gives no logits, so it is no language model's graph")
    kind = value.type.tensor_type
    if kind.elem_type == TensorProto.FLOAT:
        return
    own = f"{LOGITS}.as_exported"
    _rename(graph, LOGITS, own)
    graph.node.append(
        helper.make_node("Cast", [own], [LOGITS], name=f"{LOGITS}/Cast", to=TensorProto.FLOAT)
    )
    kind.elem_type = TensorProto.FLOAT


def rename_keep(graph: GraphProto, name: str) -> None:
    """Give the number of positions our name and shape [1], where it may be a scalar."""
    (value,) = (value for value in graph.input if value.name == name)
    own = KEEP[0]
    if len(value.type.tensor_type.shape.dim) == 1:
        _rename(graph, name, own)
    else:
        inner = f"{name}.as_exported"
        _rename(graph, name, inner)
        shape = _add_constant(graph, f"{own}.shape", [])
        graph.node.insert(0, helper.make_node("Reshape", [own, shape], [inner], name=f"{own}/Cut"))
    replacement = helper.make_tensor_value_info(own, value.type.tensor_type.elem_type, [1])
    value.CopyFrom(replacement)


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Call a value otherwise, in branches, too."""
    if old == new:
        return
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)
    for value in graph.value_info:
        if value.name == old:
            value.name = new
