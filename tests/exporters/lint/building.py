"""Small graphs, in ONNX and as OpenVINO IR, that rules are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int4": TensorProto.INT4,
    "bool": TensorProto.BOOL,
}
Shape = Sequence[int | str]


@dataclass
class Sketch:
    """An ONNX graph in few words.

    Args:
        nodes: as `op` makes them.
        inputs: name -> (type, shape).
        constants: name -> array, or (type, shape) for zeros.
        opset: of ONNX's own operators.
    """

    nodes: Sequence[onnx.NodeProto]
    inputs: Mapping[str, tuple[str, Shape]] = field(
        default_factory=lambda: {"x": ("float32", [1, "n", 64])}
    )
    constants: Mapping[str, np.ndarray | tuple[str, Shape]] = field(default_factory=dict)
    opset: int = 21

    def save(self, folder: Path) -> Path:
        """Write it; all that the last node makes is the graph's output."""
        inputs = [
            helper.make_tensor_value_info(name, _TYPES[type], shape)
            for name, (type, shape) in self.inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.nodes[-1].output if name]
        constants = [_make_constant(name, what) for name, what in self.constants.items()]
        graph = helper.make_graph(self.nodes, "sketch", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        path = folder / "sketch.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def _make_constant(name: str, what: np.ndarray | tuple[str, Shape]) -> TensorProto:
    if isinstance(what, np.ndarray):
        return numpy_helper.from_array(what, name)
    type, shape = what
    if type == "int4":
        count = int(np.prod([int(dim) for dim in shape]))
        return helper.make_tensor(name, TensorProto.INT4, list(shape), np.zeros(count, np.int8))
    return numpy_helper.from_array(np.zeros(tuple(shape), type), name)


def op(name: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; "-" stands for a value left out, and "ms." before a name for Microsoft's domain."""
    values = [["" if one == "-" else one for one in text.split()] for text in (inputs, outputs)]
    domain = MICROSOFT if name.startswith("ms.") else ""
    return helper.make_node(name.removeprefix("ms."), *values, domain=domain, **attributes)


def ints(*values: int) -> np.ndarray:
    """A constant of 64-bit integers."""
    return np.array(values, np.int64)


_LAYER = """<layer id="{id}" name="{name}" type="{type}" version="opset1"><data {data}/>
<input>{inputs}</input><output><port id="9" precision="{precision}">{dims}</port></output></layer>
"""


@dataclass
class IrSketch:
    """An OpenVINO IR in few words.

    Args:
        layers: (type, name, precision, shape, data, names of inputs).
        content: names of constants -> their elements, 64-bit integers.
    """

    layers: Sequence[tuple[str, str, str, Sequence[int], Mapping[str, str], Sequence[str]]]
    content: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write both files."""
        path = folder / "sketch.xml"
        ids = {layer[1]: number for number, layer in enumerate(self.layers)}
        weights, layers, edges = b"", "", ""
        for type, name, precision, shape, data, inputs in self.layers:
            words = dict(data)
            if name in self.content:
                raw = np.array(self.content[name], np.int64).tobytes()
                words |= {"element_type": "i64", "offset": str(len(weights)), "size": str(len(raw))}
                weights += raw
            layers += _LAYER.format(
                id=ids[name],
                name=name,
                type=type,
                data=" ".join(f'{key}="{value}"' for key, value in words.items()),
                inputs="".join(f'<port id="{port}"/>' for port in range(len(inputs))),
                precision=precision,
                dims="".join(f"<dim>{dim}</dim>" for dim in shape),
            )
            for port, source in enumerate(inputs):
                ends = f'from-layer="{ids[source]}" from-port="9" to-layer="{ids[name]}"'
                edges += f'<edge {ends} to-port="{port}"/>\n'
        path.write_text(f"<net><layers>{layers}</layers><edges>{edges}</edges></net>")
        path.with_suffix(".bin").write_bytes(weights)
        return path
