"""QuantizeLinear and DequantizeLinear around every activation, in 16 bits.

Values that operators only move (Concat, Slice, Transpose, ...) share a scale with what they
come from: moving them then costs no rounding, and a state goes out and comes in unchanged.
What enters a product second is signed with zero point 0: of unsigned 16-bit values there,
onnxruntime-qnn 2.7 makes 8-bit ones by itself (its matmul_op_builder.cc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft
from exporters.passes.qnn.mask import CAUSAL
from exporters.quantize.ranges import Range, Ranges, range_key
from lfm2_deploy.errors import ExportError
from lfm2_deploy.static_graphs import ROW_MASK

# Operators that move numbers, and which of their inputs those are; None for all.
_MOVING: dict[str, int | None] = {
    "Reshape": 0, "Transpose": 0, "Slice": 0, "Split": 0, "Expand": 0, "Gather": 0, "Concat": None,
}  # fmt: skip
_UNIT = Range(0.0, 1.0)
# Room for what calibration did not see, at the price of a bit of sixteen. Of the demo model,
# calibrated on Austen and tested on prose about software, the KL divergence in int8 is 0.0134
# nats with 1.25, and 0.0015 with 2, 4 or 8, as where it is calibrated on that prose.
_MARGIN = 2.0
# exp(-24) = 4e-11: thousands of masked positions together weigh nothing in 16 bits.
_MASK_GAP = 24.0


def quantize_activations(ranges: Ranges) -> Callable[[Draft], None]:
    """A pass that quantizes every float value between operators.

    Args:
        ranges: from calibration; where there are none, the graph stays as it is. Weights are
            the same either way.
    """
    return lambda draft: _Quantizer(draft, ranges).apply() if ranges else None


class _Quantizer:
    def __init__(self, draft: Draft, ranges: Ranges) -> None:
        self.draft, self.graph, self.ranges = draft, draft.graph, ranges
        self.parent: dict[ir.Value, ir.Value] = {}

    def apply(self) -> None:
        _drop_idle_casts(self.graph)
        values = list(self._list_values())
        for node in self.graph:
            self._join(node)
        signed = self._find_signed()
        found = self._find_ranges(values)
        for value in values:
            root = self._root(value)
            signs = [True] if root in signed else [False]
            if root in signed and _is_product(value):
                # FullyConnected gives no signed values (onnxruntime-qnn 2.7): converted after it.
                signs = [False, True]
            for sign in signs:
                value = self._wrap(value, found[root], sign)

    def _list_values(self) -> Iterable[ir.Value]:
        """Float values that an operator computes with or gives to another."""
        yield from (v for v in self.graph.inputs if v.dtype == ir.DataType.FLOAT and v.uses())
        for value in self.graph.initializers.values():
            read_by = {use.node.op_type for use in value.uses()}
            if value.dtype == ir.DataType.FLOAT and "DequantizeLinear" not in read_by:
                yield value
        for node in self.graph:
            if node.op_type != "DequantizeLinear" and not _is_edge(node):
                yield from node.outputs

    # Values that share a scale

    def _root(self, value: ir.Value) -> ir.Value:
        while value in self.parent:
            value = self.parent[value]
        return value

    def _join(self, node: ir.Node) -> None:
        if node.op_type not in _MOVING:
            return
        place = _MOVING[node.op_type]
        moved = node.inputs if place is None else [node.inputs[place]]
        first = self._root(node.outputs[0])
        for value in (*moved, *node.outputs):
            assert value is not None
            root = self._root(value)
            if root is not first:
                self.parent[root] = first

    def _find_signed(self) -> set[ir.Value]:
        second = (n.inputs[1] for n in self.graph if n.op_type == "MatMul")
        return {self._root(v) for v in second if v is not None and not _is_weight(v)}

    # Ranges

    def _find_ranges(self, values: list[ir.Value]) -> dict[ir.Value, Range]:
        found: dict[ir.Value, Range] = {}
        fixed: set[ir.Value] = set()
        for value in values:
            root, seen = self._root(value), self._look_up(value)
            if seen is not None:
                found[root] = found.get(root, Range()).join(seen)
            producer = value.producer()
            if producer is not None and producer.op_type in ("Softmax", "Sigmoid"):
                found[root] = _UNIT
                fixed.add(root)
        self._check_complete(values, found)
        constants = {self._root(v) for v in self.graph.initializers.values()}
        for root, seen in found.items():
            if root not in fixed and root not in constants:
                found[root] = seen.widen(_MARGIN)
        self._limit_masks(values, found)
        return found

    def _check_complete(self, values: list[ir.Value], found: Mapping[ir.Value, Range]) -> None:
        for value in values:
            if self._root(value) not in found:
                raise ExportError(
                    f"calibration did not come by {value.name}; this is a fault of the exporter's"
                )

    def _look_up(self, value: ir.Value) -> Range | None:
        """None for what only moves numbers in other ways in other graphs."""
        key = range_key(str(value.name))
        if key in self.ranges:
            return self.ranges[key]
        if value.const_value is not None:
            array = value.const_value.numpy()
            return Range(min(0.0, float(array.min())), max(0.0, float(array.max())))
        return None

    def _limit_masks(self, values: list[ir.Value], found: dict[ir.Value, Range]) -> None:
        """A mask only has to be lower than all scores, and would take all 16 bits otherwise."""
        masks = {self._root(v) for v in values if v.name in (ROW_MASK, CAUSAL)}
        # Of each sum with a mask: what it gives, and the scores as they were before any.
        sums: dict[ir.Value, ir.Value] = {}
        for node in self.graph:
            if node.op_type == "Add" and self._root_of(node.inputs[1]) in masks:
                scores = self._root_of(node.inputs[0])
                sums[self._root(node.outputs[0])] = sums.get(scores, scores)
        gaps = [found[scores].high - found[scores].low for scores in sums.values()]
        lowest = -(max(gaps, default=0.0) + _MASK_GAP)
        for root in masks:
            found[root] = Range(lowest, 0.0)
        for root, scores in sums.items():
            found[root] = Range(found[scores].low + lowest, found[scores].high)

    def _root_of(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        return self._root(value)

    # Nodes

    def _wrap(self, value: ir.Value, seen: Range, signed: bool) -> ir.Value:
        """Let all that reads a value read it rounded; returns that."""
        scale, zero = self._declare(seen, signed)
        quantize = ir.node("QuantizeLinear", [value, scale, zero])
        quantize.name = f"{value.name}/QuantizeLinear"
        quantize.outputs[0].name = f"{value.name}.q"
        restore = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        restore.name = f"{value.name}/DequantizeLinear"
        restore.outputs[0].name = f"{value.name}.dq"
        value.replace_all_uses_with(restore.outputs[0])
        quantize.replace_input_with(0, value)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantize, restore])
        else:
            self.graph.insert_after(producer, [quantize, restore])
        return restore.outputs[0]

    def _declare(self, seen: Range, signed: bool) -> tuple[ir.Value, ir.Value]:
        scale, zero = choose_scale(seen, signed)
        book = self.draft.book
        kind = "i16" if signed else "u16"
        return (
            book.constant(self.graph, f"scale.{scale!r}", np.array(scale, np.float32)),
            book.constant(
                self.graph, f"zero.{kind}.{zero}", np.array(zero, np.int16 if signed else np.uint16)
            ),
        )


def choose_scale(seen: Range, signed: bool) -> tuple[float, int]:
    """Scale and zero point of 16 bits for a range."""
    if signed:
        return float(np.float32(max(seen.reach, 1e-6) / 32767)), 0
    scale = float(np.float32(max(seen.high - seen.low, 1e-6) / 65535))
    return scale, round(-seen.low / scale)


def _is_weight(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_product(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "MatMul"


def _is_edge(node: ir.Node) -> bool:
    """Whether a node only names an output of the graph."""
    return node.op_type in ("Identity", "Cast") and node.outputs[0].is_graph_output()


def _drop_idle_casts(graph: ir.Graph) -> None:
    """Of graphs with float32 edges: casts from float32 to float32."""
    for node in list(graph):
        if node.op_type == "Cast" and not _is_edge(node):
            assert node.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)
