"""Run a graph before its passes in numpy, and after them in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from exporters.draft import MICROSOFT, SEMANTIC, Draft
from exporters.quantize.pack import dequantize, quantize
from exporters.quantize.plan import Precision, plan_tensors
from exporters.targets.target import Pass, Planner
from exporters.trace import OPSET
from exporters.weight_book import WeightBook
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.weights import list_weights

from .semantic_ops import Array, make_semantic_ops

Arrays = dict[str, Array]
Reader = Callable[[str], Array]

CONTEXT = 48


@dataclass(frozen=True)
class Op:
    """One node of a small graph. A name that is neither fed nor computed is a weight."""

    type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        return "" if self.type in ("Add", "Mul") else SEMANTIC


def sketch(
    config: Lfm2Config,
    precision: Precision,
    feeds: Arrays,
    *ops: Op,
    planner: Planner = plan_tensors,
) -> Draft:
    """A draft of a few nodes; what no later node takes is an output."""
    inputs = [_describe_input(name, array) for name, array in feeds.items()]
    values = {str(value.name): value for value in inputs}
    weights, nodes = [], []
    for op in ops:
        for name in op.inputs:
            if name not in values:
                values[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
                weights.append(values[name])
        taken = [values[name] for name in op.inputs]
        node = ir.node(
            op.type, taken, dict(op.attributes),
            domain=op.domain, num_outputs=len(op.outputs), name="/".join([op.type, *op.outputs]),
        )  # fmt: skip
        for name, value in zip(op.outputs, node.outputs, strict=True):
            dtype = ir.DataType.INT64 if op.type == "Lengths" else ir.DataType.FLOAT
            value.name, value.type, values[name] = name, ir.TensorType(dtype), value
        nodes.append(node)
    outputs = [value for node in nodes for value in node.outputs if not value.uses()]
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, name="sketch")
    plan = planner(list_weights(config), precision)
    return Draft(config, graph, plan, WeightBook(), CONTEXT)


def _describe_input(name: str, array: Array) -> ir.Value:
    dims = [f"{name}_{axis}" for axis in range(array.ndim)]
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def evaluate(graph: ir.Graph, config: Lfm2Config, read: Reader, feeds: Arrays) -> Arrays:
    """A graph's outputs, its semantic operators in numpy. The graph stays as it is."""
    graph = graph.clone()
    for name, value in graph.initializers.items():
        value.const_value = ir.tensor(read(name), name=name)
    evaluator = ReferenceEvaluator(_serialize(graph, SEMANTIC), new_ops=make_semantic_ops(config))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def run_in_ort(draft: Draft, checkpoint: Checkpoint, feeds: Arrays) -> Arrays:
    """A lowered draft's outputs in ONNX Runtime, its initializers filled in memory."""
    graph, filled = draft.graph.clone(), fill(draft.book, checkpoint)
    for name, value in list(graph.initializers.items()):
        if name in filled:
            value.const_value = ir.tensor(filled[name], name=name)
        elif value.const_value is None:
            # A weight that passes have replaced; build_draft drops them too.
            assert not value.uses(), f"{name} was not lowered"
            del graph.initializers[name]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = _serialize(graph, MICROSOFT).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _serialize(graph: ir.Graph, domain: str) -> Any:
    graph.opset_imports.clear()
    graph.opset_imports.update({"": OPSET, domain: 1})
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10))


def fill(book: WeightBook, checkpoint: Checkpoint) -> Arrays:
    """Every declared initializer, as the writer would write it."""
    arrays: Arrays = {}
    for declared in book.declared.values():
        if declared.alias_of:
            arrays[declared.name] = arrays[declared.alias_of].reshape(declared.shape)
        else:
            arrays[declared.name] = np.zeros(declared.shape, declared.dtype.numpy())
    for job in book.jobs:
        encoded = job.encode(*(checkpoint.read(name) for name in job.sources))
        for slot, array in zip(job.slots, encoded, strict=True):
            place = arrays[slot.initializer]
            if slot.index is not None:
                place = place[slot.index]
            place[...] = array.reshape(place.shape)
    return arrays


def read_as_stored(
    checkpoint: Checkpoint, precision: Precision, planner: Planner = plan_tensors
) -> Reader:
    """A checkpoint's tensors as a precision stores them: rounded, and float32 again."""
    plan = planner(list_weights(checkpoint.config), precision)

    def read(name: str) -> Array:
        tensor, entry = checkpoint.read(name), plan[name]
        if entry.is_quantized:
            return dequantize(*quantize(tensor, entry.bits, entry.group), entry.bits)
        return tensor.astype(np.float16).astype(np.float32) if entry.bits == 16 else tensor

    return read


def before_and_after(
    checkpoint: Checkpoint,
    precision: Precision,
    passes: Sequence[Pass],
    feeds: Arrays,
    *ops: Op,
) -> tuple[Arrays, Arrays]:
    """Outputs of a few nodes in numpy, and in ONNX Runtime of what passes make of them."""
    draft = sketch(checkpoint.config, precision, feeds, *ops)
    read = read_as_stored(checkpoint, precision)
    before = evaluate(draft.graph, checkpoint.config, read, feeds)
    for rewrite in passes:
        rewrite(draft)
    return before, run_in_ort(draft, checkpoint, feeds)
