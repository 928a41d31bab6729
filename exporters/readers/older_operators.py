"""What operators cannot carry yet in the ONNX Runtimes that readers bring along.

Each edit changes a reader's copy of the graph in place, and gives up what only our own runtimes
use: rows of unequal length in one call, and 8-bit activations in experts.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, name_of

# GroupQueryAttention's `query_seqlens` came with ONNX Runtime 1.31: 1.30 (onnxruntime-node of
# transformers.js 4.3.2) calls a 17th input invalid. It can stay when readers have moved on.
_MOST_ATTENTION_INPUTS = 16


def drop_row_lengths(graph: ir.Graph) -> None:
    """Attention without each row's count of new tokens: all rows bring as many."""
    for node in graph:
        if node.domain == MICROSOFT and node.op_type == "GroupQueryAttention":
            count = min(len(node.inputs), _MOST_ATTENTION_INPUTS)
            while count and node.inputs[count - 1] is None:
                count -= 1
            node.resize_inputs(count)


def drop_accuracy_level(graph: ir.Graph) -> None:
    """Experts without the choice of 8-bit activations, which ONNX Runtime 1.30 does not know."""
    for node in graph:
        if node.domain == MICROSOFT and node.op_type == "QMoE":
            node.attributes.pop("accuracy_level", None)


def drop_expert_layout(graph: ir.Graph) -> None:
    """Experts without the note that weights are as stored, which ONNX Runtime 1.27 does not know.

    On the CPU it is the default. (CUDA's kernel of 1.28 and later takes them for prepacked.)
    """
    for node in graph:
        if node.domain == MICROSOFT and node.op_type == "QMoE":
            node.attributes.pop("weights_prepacked", None)


def write_out_convolutions(graph: ir.Graph) -> None:
    """Convolutions of standard operators: CausalConvWithState has no channels_last before 1.30.

    The columns before and of a call lie joined already, since states are cut from them.
    """
    for node in [*graph]:
        if node.domain != MICROSOFT or node.op_type != "CausalConvWithState":
            continue
        kernel, past, out = node.inputs[1], node.inputs[3], node.outputs[0]
        assert kernel is not None
        assert kernel.shape is not None
        assert past is not None
        joined = next(user for user, _ in past.uses() if user.op_type == "Concat")
        name = name_of(out)
        first = _transpose(joined.outputs[0], f"{name}/first")
        conv = ir.node("Conv", [first.outputs[0], kernel], {"group": int(kernel.shape[0])})
        last = _transpose(conv.outputs[0], f"{name}/last")
        conv.name, conv.outputs[0].name = f"{name}/conv", f"{name}:conv"
        ir.convenience.replace_all_uses_with(out, last.outputs[0])
        # Where the joined columns are known, which may be after the node that goes.
        graph.insert_after(joined, [first, conv, last])
        graph.remove(node, safe=True)
    graph.sort()


def _transpose(value: ir.Value, name: str) -> ir.Node:
    node = ir.node("Transpose", [value], {"perm": [0, 2, 1]}, name=name)
    node.outputs[0].name = f"{name}:0"
    return node
