"""Types and shapes of values, node by node, as far as they can be known.

ONNX's own operators are asked of package onnx. Of ONNX Runtime's operators a table says which
output has which input's type; their shapes are taken from the file where it gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import onnx
from onnx import TensorProto, helper

from exporters.lint.graph import Dim, Shape, Value
from exporters.lint.kernels import OperatorSchema, load_schemas

_NAMES = {"float": "float32", "double": "float64"}
_TYPES = {number: name.lower() for name, number in TensorProto.DataType.items()}
_NUMBERS = {_NAMES.get(name, name): number for number, name in _TYPES.items()}
# Operator -> output -> the input whose shape it has.
_KEEP_SHAPE: Mapping[str, Mapping[int, int]] = {
    "SimplifiedLayerNormalization": {0: 0},
    "SkipSimplifiedLayerNormalization": {0: 0, 3: 0},
    "SkipLayerNormalization": {0: 0, 3: 0},
    "RotaryEmbedding": {0: 0},
    "QuickGelu": {0: 0},
    "QMoE": {0: 0},
    "MoE": {0: 0},
    "CausalConvWithState": {0: 0, 1: 3},
}


def describe_type(type: onnx.TypeProto) -> tuple[str | None, Shape | None]:
    """A tensor's element type and shape, None for what is not said."""
    tensor = type.tensor_type
    if not type.HasField("tensor_type") or tensor.elem_type == TensorProto.UNDEFINED:
        return None, None
    name = _TYPES[tensor.elem_type]
    shape = tuple(map(_read_dim, tensor.shape.dim)) if tensor.HasField("shape") else None
    return _NAMES.get(name, name), shape


def _read_dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


class Inference:
    """What the operators of one model do to types and shapes.

    Args:
        opsets: domain -> version.
        ir_version: of the file.
    """

    def __init__(self, opsets: Mapping[str, int], ir_version: int) -> None:
        self._opsets = opsets
        self.ir_version = ir_version

    @cached_property
    def _imports(self) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]

    def find_schema(self, domain: str, op: str) -> onnx.defs.OpSchema | None:
        """ONNX's definition of an operator; None where it is another's or too new."""
        try:
            return onnx.defs.get_schema(op, self._opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return None

    def find_since(self, domain: str, op: str) -> int | None:
        """The version of an operator that ONNX itself does not define."""
        found = load_schemas().get((domain, op))
        return found.since if found else None

    def infer(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        known: Mapping[str, Value],
    ) -> Iterator[Value]:
        """Outputs of a node, by what the file says of them and what can be told."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = self.find_schema(domain, node.op_type)
        found: Mapping[str, Value] = {}
        if schema is not None:
            found = self._ask_onnx(schema, node, inputs)
        elif (own := load_schemas().get((domain, node.op_type))) is not None:
            found = _follow(own, node, inputs)
        for name in filter(None, node.output):
            said, told = known.get(name, Value(name)), found.get(name, Value(name))
            yield Value(name, said.type or told.type, merge_shapes(said.shape, told.shape))

    def _ask_onnx(
        self, schema: onnx.defs.OpSchema, node: onnx.NodeProto, inputs: Sequence[Value | None]
    ) -> Mapping[str, Value]:
        values = {value.name: value for value in inputs if value is not None}
        types = {name: _write_type(value) for name, value in values.items()}
        if not all(value.type for value in values.values()) or any(
            attribute.HasField("g") for attribute in node.attribute
        ):
            return {}
        data = {name: _write_content(value) for name, value in values.items() if value.content}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, None, self._imports, self.ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
            return {}
        return {name: Value(name, *describe_type(type)) for name, type in found.items()}


def merge_shapes(said: Shape | None, told: Shape | None) -> Shape | None:
    """What a file says of a shape, with the numbers that can be told where it has none."""
    if said is None or told is None or len(said) != len(told):
        return told if said is None else said
    return tuple(
        one if isinstance(one, int) or not isinstance(other, int) else other
        for one, other in zip(said, told, strict=True)
    )


def _write_type(value: Value) -> onnx.TypeProto:
    number = _NUMBERS.get(value.type or "", TensorProto.UNDEFINED)
    return helper.make_tensor_type_proto(number, value.shape)


def _write_content(value: Value) -> TensorProto:
    number = _NUMBERS[value.type or ""]
    dims = [dim for dim in value.shape or () if isinstance(dim, int)]
    return helper.make_tensor(value.name, number, dims, value.content or ())


def _follow(
    schema: OperatorSchema, node: onnx.NodeProto, inputs: Sequence[Value | None]
) -> Mapping[str, Value]:
    """Outputs with the types of inputs that have the same type parameter."""
    bound = {
        schema.parameter(index): value.type
        for index, value in enumerate(inputs)
        if value is not None and value.type
    }
    found = {}
    for index, name in enumerate(node.output):
        parameter = schema.parameter(index, of_output=True)
        type = bound.get(parameter) or schema.only_type(parameter)
        found[name] = Value(name, type, _find_shape(node, index, inputs))
    return found


def _find_shape(node: onnx.NodeProto, index: int, inputs: Sequence[Value | None]) -> Shape | None:
    source = _KEEP_SHAPE.get(node.op_type, {}).get(index, len(inputs))
    kept = inputs[source] if source < len(inputs) else None
    if kept is not None:
        return kept.shape
    first, second = (*inputs, None, None)[:2]
    if node.op_type == "MatMulNBits":
        return _widen(first, next((one.i for one in node.attribute if one.name == "N"), None))
    if node.op_type == "FusedMatMul":
        return _multiply(node, first, second)
    if node.op_type == "GroupQueryAttention" and second is not None and index == 0:
        return first.shape if first is not None else None
    return None


def _widen(first: Value | None, wide: Dim) -> Shape | None:
    """[..., K] -> [..., N]."""
    if first is None or first.shape is None or wide is None:
        return None
    return (*first.shape[:-1], wide)


def _multiply(node: onnx.NodeProto, first: Value | None, second: Value | None) -> Shape | None:
    """[..., K] times a matrix, which may be transposed."""
    flags = {one.name: one.i for one in node.attribute}
    if second is None or second.shape is None or len(second.shape) != 2 or flags.get("transA"):
        return None
    return _widen(first, second.shape[0 if flags.get("transB") else 1])
