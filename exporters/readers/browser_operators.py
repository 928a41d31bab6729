"""What transformers.js wants otherwise than the canonical graph has it.

Each edit changes a reader's copy of the graph in place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.stitch import INPUT_IDS, LOGITS, LOGITS_TO_KEEP

# As transformers.js 4 calls it, src/models/modeling_utils.js, setNumLogitsToKeep.
NUM_LOGITS_TO_KEEP = "num_logits_to_keep"
_MIDDLE = 128.0  # the byte that means zero


def read_tables_plainly(graph: ir.Graph) -> None:
    """Embeddings by standard operators: rows of bytes, and then their meaning.

    The WebAssembly that transformers.js 4.3.2 loads (onnxruntime-web 1.31.0-dev.20260914, asyncify)
    has no GatherBlockQuantized for the CPU. The head's own bytes are read where it has them, so
    that a table is not held twice.
    """
    for node in list(graph):
        if node.op_type != "GatherBlockQuantized":
            continue
        table, ids, scales = node.inputs
        assert scales is not None
        assert scales.shape is not None
        assert node.attributes.get_int("bits") == 8  # tables are, in every integer precision
        head = next((user for user, _ in scales.uses() if user.op_type == "MatMulNBits"), None)
        packed = table if head is None else head.inputs[1]
        block = node.attributes.get_int("block_size")
        make = _Maker(graph, node, "table")
        rows = make("Cast", make("Gather", packed, ids, axis=0), to=ir.DataType.FLOAT)
        blocks = make("Reshape", rows, make.ints("blocks", 0, 0, -1, block))
        levels = make("Sub", blocks, make.tensor("middle", np.float32(_MIDDLE)))
        steps = make("Unsqueeze", make("Gather", scales, ids, axis=0), make.ints("last", -1))
        width = block * scales.shape.numpy()[1]
        x = make("Reshape", make("Mul", levels, steps), make.ints("width", 0, 0, width))
        ir.convenience.replace_all_uses_with(node.outputs[0], x)
        graph.remove(node, safe=True)
        _forget_unused(graph, table)


def ask_for_logits(graph: ir.Graph) -> None:
    """`num_logits_to_keep`, int64 of no axis, 0 for every position, in place of `logits_to_keep`.

    transformers.js feeds it when it finds it: 1 while it generates, 0 in a plain call. It has no
    default, since transformers.js leaves inputs out that have one.
    """
    keep = next(value for value in graph.inputs if value.name == LOGITS_TO_KEEP)
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    wanted = ir.Value(
        name=NUM_LOGITS_TO_KEEP, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64)
    )
    make = _Maker(graph, graph[0], "keep")
    everything = make("Shape", ids, start=1, end=2)
    none = make("Equal", wanted, make.tensor("none", np.int64(0)))
    counted = make("Reshape", wanted, make.ints("row", 1))
    chosen = make("Where", none, everything, counted)
    ir.convenience.replace_all_uses_with(keep, chosen)
    graph.inputs[graph.inputs.index(keep)] = wanted
    graph.initializers.pop(LOGITS_TO_KEEP, None)
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], NUM_LOGITS_TO_KEEP, logits.shape[2]])


class _Maker:
    """Adds nodes in front of one, and constants by name."""

    def __init__(self, graph: ir.Graph, before: ir.Node, prefix: str) -> None:
        self._graph, self._before, self._prefix, self._count = graph, before, prefix, 0

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, **attributes: ir.DataType | int
    ) -> ir.Value:
        self._count += 1
        name = f"{self._prefix}/{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attributes or None, name=name)
        node.outputs[0].name = f"{name}:0"
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def ints(self, name: str, *numbers: int) -> ir.Value:
        return self.tensor(name, np.array(numbers, np.int64))

    def tensor(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        full = f"{self._prefix}/{name}"
        if full not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(array), name=full)
            self._graph.initializers[full] = ir.val(full, const_value=tensor)
        return self._graph.initializers[full]


def _forget_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    if value is not None and value.name is not None and not value.uses():
        graph.initializers.pop(value.name, None)
