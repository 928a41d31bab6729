"""Run a lowered float graph in numpy, to see what its values are.

Node by node over all rows at once, so that each weight is read once and dropped, and each
value as soon as nothing reads it: memory holds one matrix and the activations of about one
layer, whatever the model's size. Only operators that static graphs are made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lfm2_deploy.errors import ExportError

Array = NDArray[Any]
# One array for each row.
Rows = list[Array]


class Evaluator:
    """Evaluates one graph.

    Args:
        graph: its nodes in order of use.
        read: gives an initializer's array, by name.
        observe: told of each value a node gives, by name.
        provide: gives a graph input that was not fed, by name, once what lies before it has
            been computed; handed the values of all outputs so far.
    """

    def __init__(
        self,
        graph: ir.Graph,
        read: Callable[[str], Array],
        observe: Callable[[str, Array], None],
        provide: Callable[[str, Mapping[str, Rows]], Rows],
    ) -> None:
        self._graph, self._read, self._observe, self._provide = graph, read, observe, provide

    def run(self, feeds: Mapping[str, Rows], rows: int) -> dict[str, Rows]:
        """The outputs, by name.

        Raises:
            ExportError: an operator that this does not know.
        """
        uses: Counter[ir.Value] = Counter(v for n in self._graph for v in n.inputs if v is not None)
        values: dict[ir.Value, Rows] = {}
        outputs: dict[str, Rows] = {}
        wanted = {id(value): str(value.name) for value in self._graph.outputs}
        for node in self._graph:
            for value in (v for v in node.inputs if v is not None):
                if value not in values:
                    values[value] = self._find(value, feeds, outputs, rows)
            for value, results in self._call(node, values, rows):
                values[value] = results
                if id(value) in wanted:
                    outputs[wanted[id(value)]] = results
            for value in (v for v in node.inputs if v is not None):
                uses[value] -= 1
                if not uses[value]:
                    del values[value]
        return outputs

    def _find(
        self, value: ir.Value, feeds: Mapping[str, Rows], outputs: Mapping[str, Rows], rows: int
    ) -> Rows:
        name = str(value.name)
        if value.const_value is not None:
            return [value.const_value.numpy()] * rows
        if name in self._graph.initializers:
            array = self._read(name)
            self._observe(name, array)
            return [array] * rows
        found = feeds[name] if name in feeds else self._provide(name, outputs)
        for array in found:
            self._observe(name, array)
        return found

    def _call(
        self, node: ir.Node, values: Mapping[ir.Value, Rows], rows: int
    ) -> list[tuple[ir.Value, Rows]]:
        operator = _OPERATORS.get(node.op_type)
        if operator is None:
            raise ExportError(f"calibration does not know the operator {node.op_type}")
        results = []
        for row in range(rows):
            inputs = [values[v][row] for v in node.inputs if v is not None]
            results.append(operator(node, inputs))
        for outputs in results:
            for value, array in zip(node.outputs, outputs, strict=True):
                self._observe(str(value.name), array)
        columns = zip(*results, strict=True)
        return [(v, list(c)) for v, c in zip(node.outputs, columns, strict=True)]


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _sigmoid(x: Array) -> Array:
    # exp of large negative numbers overflows to infinity, whose inverse is the 0 it should be.
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    result: Array = powers / powers.sum(-1, keepdims=True)
    return result


def _rms_norm(node: ir.Node, x: Array, gamma: Array) -> Array:
    mean = np.square(x).mean(-1, keepdims=True)
    result: Array = x / np.sqrt(mean + np.float32(_attribute(node, "epsilon"))) * gamma
    return result


def _slice(x: Array, starts: Array, ends: Array, axes: Array) -> Array:
    picks = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        picks[axis] = slice(int(start), int(end))
    return x[tuple(picks)]


def _split(node: ir.Node, x: Array, sizes: Array | None = None) -> Sequence[Array]:
    if sizes is None:
        return np.split(x, _attribute(node, "num_outputs"), _attribute(node, "axis"))
    return np.split(x, np.cumsum(sizes)[:-1], _attribute(node, "axis"))


def _reshape(x: Array, shape: Array) -> Array:
    return x.reshape([size or x.shape[i] for i, size in enumerate(shape.tolist())])


_Operator = Callable[[ir.Node, Sequence[Array]], Sequence[Array]]
_OPERATORS: Mapping[str, _Operator] = {
    "Add": lambda n, i: [i[0] + i[1]],
    "Cast": lambda n, i: [i[0]],
    "Concat": lambda n, i: [np.concatenate(i, _attribute(n, "axis"))],
    "Expand": lambda n, i: [np.broadcast_to(i[0], np.broadcast_shapes(i[0].shape, i[1]))],
    "Gather": lambda n, i: [np.take(i[0], i[1], _attribute(n, "axis", 0))],
    "Identity": lambda n, i: [i[0]],
    "MatMul": lambda n, i: [i[0] @ i[1]],
    "Mul": lambda n, i: [i[0] * i[1]],
    "RMSNormalization": lambda n, i: [_rms_norm(n, *i)],
    "Reshape": lambda n, i: [_reshape(*i)],
    "Sigmoid": lambda n, i: [_sigmoid(i[0])],
    "Slice": lambda n, i: [_slice(*i)],
    "Softmax": lambda n, i: [_softmax(i[0])],
    "Split": lambda n, i: _split(n, *i),
    "Sub": lambda n, i: [i[0] - i[1]],
    "Transpose": lambda n, i: [i[0].transpose(_attribute(n, "perm"))],
}
