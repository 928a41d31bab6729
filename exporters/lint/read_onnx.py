"""An ONNX file -> a `Graph`. Weights beside the file are not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from exporters.lint.graph import Graph, Node, Value
from exporters.lint.infer import Inference, describe_type
from lfm2_deploy.errors import BundleError

# Constants up to so many elements are kept with their content.
_MOST_CONTENT = 64
# The same inputs give other outputs at each call.
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
# ONNX Runtime keeps these although they could be computed beforehand: weights stay small.
_KEPT = {"DequantizeLinear", "QuantizeLinear"}
_ALIASES = {"ai.onnx": ""}
# The IR version from which on inputs may have defaults.
_DEFAULTS = 4


def read_onnx(path: Path) -> Graph:
    """Read a graph and the types of its values.

    Args:
        path: an .onnx file.

    Raises:
        BundleError: it cannot be read, or holds no graph.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{path} cannot be read as an ONNX model ({reason}): give the file that an exporter "
            "wrote, whole"
        ) from error
    if not model.graph.node:
        raise BundleError(
            f"{path} holds no graph of nodes: expected an ONNX model; a file of a few bytes may "
            "be a Git LFS pointer, fetched by `git lfs pull`"
        )
    try:
        return _read_model(model, path.name)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(
            f"{path} is no whole ONNX model ({reason}): onnx.checker.check_model says more"
        ) from error


def _read_model(model: onnx.ModelProto, file: str) -> Graph:
    opsets = {_ALIASES.get(one.domain, one.domain): one.version for one in model.opset_import}
    reader = _Reader(Inference(opsets, model.ir_version))
    nodes = tuple(reader.read_nodes(model.graph, ""))
    return Graph(
        file,
        nodes,
        tuple(reader.values[one.name] for one in _list_inputs(model.graph, model.ir_version)),
        tuple(reader.values[one.name] for one in model.graph.output),
        opsets,
        tuple(reader.initializers),
    )


def _list_inputs(graph: onnx.GraphProto, ir_version: int) -> list[onnx.ValueInfoProto]:
    """What the caller may give: an input with an initializer is one with a default.

    Before IR version 4 every initializer had to be listed as an input, so there it is none.
    """
    given = {tensor.name for tensor in graph.initializer} if ir_version < _DEFAULTS else set()
    return [one for one in graph.input if one.name not in given]


@dataclass
class _Reader:
    """Values met so far, by name; an inner graph sees those of the outer ones."""

    inference: Inference
    values: dict[str, Value] = field(default_factory=dict)
    initializers: list[Value] = field(default_factory=list)

    def read_nodes(self, graph: onnx.GraphProto, prefix: str) -> Iterator[Node]:
        self._declare(graph)
        for number, proto in enumerate(graph.node):
            node = self._read_node(proto, f"{prefix}{proto.name or _name(proto, number)}")
            yield node
            for attribute in proto.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    yield from self.read_nodes(inner, f"{node.name}/{attribute.name}/")

    def _declare(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self._add_constant(tensor.name, tensor)
        given = {tensor.name for tensor in graph.initializer}
        for info in (*graph.value_info, *graph.output):
            if info.name not in given:  # some exporters describe initializers here once more
                self._add(Value(info.name, *describe_type(info.type)))
        for info in _list_inputs(graph, self.inference.ir_version):
            self._add(Value(info.name, *describe_type(info.type), is_input=True))

    def _add_constant(self, name: str, tensor: TensorProto) -> None:
        type = describe_type(helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
        value = Value(name, *type, constant=True, content=_read_content(tensor))
        self.initializers.append(value)
        self._add(value)

    def _add(self, value: Value) -> None:
        if value.name:
            self.values[value.name] = value

    def _read_node(self, proto: onnx.NodeProto, name: str) -> Node:
        domain = _ALIASES.get(proto.domain, proto.domain)
        inputs = [self.values.setdefault(one, Value(one)) if one else None for one in proto.input]
        present = [value for value in inputs if value is not None]
        tensor = next((one.t for one in proto.attribute if one.name == "value"), None)
        folded = _is_folded(proto, present)
        if proto.op_type == "Constant" and tensor is not None and proto.output:
            self._add_constant(proto.output[0], tensor)
        else:
            for value in self.inference.infer(proto, inputs, self.values):
                self._add(replace(value, constant=folded))
        outputs = [self.values.setdefault(o, Value(o)) if o else None for o in proto.output]
        schema = self.inference.find_schema(domain, proto.op_type)
        return Node(
            name,
            proto.op_type,
            domain,
            schema.since_version if schema else self.inference.find_since(domain, proto.op_type),
            tuple(inputs),
            tuple(outputs),
            _read_attributes(proto.attribute),
            folded,
            _is_function(schema),
        )


def _is_function(schema: Any) -> bool:
    """Whether ONNX Runtime can take the operator apart; onnx's stubs do not know these two."""
    return bool(schema and (schema.has_function or schema.has_context_dependent_function))


def _name(proto: onnx.NodeProto, number: int) -> str:
    return next(iter(proto.output), "") or f"{proto.op_type}.{number}"


def _is_folded(proto: onnx.NodeProto, inputs: Sequence[Value]) -> bool:
    if proto.op_type == "Constant":
        return True
    plain = proto.op_type not in _RANDOM | _KEPT and not any(
        one.HasField("g") for one in proto.attribute
    )
    return plain and bool(inputs) and all(value.constant for value in inputs)


def _read_attributes(attributes: Sequence[onnx.AttributeProto]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for attribute in attributes:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        found[attribute.name] = value if isinstance(value, int | float | str | list) else True
    return found


def _read_content(tensor: TensorProto) -> tuple[Any, ...] | None:
    count = 1
    for dim in tensor.dims:
        count *= dim
    external = tensor.data_location == TensorProto.EXTERNAL
    if external or count > _MOST_CONTENT or tensor.data_type == TensorProto.STRING:
        return None
    return tuple(numpy_helper.to_array(tensor).reshape(-1).tolist())
