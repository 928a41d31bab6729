"""What operators cannot carry yet in the ONNX Runtimes that readers bring along.

Each edit changes a reader's copy of the graph in place, and gives up what only our own runtimes
use: rows of unequal length in one call, and 8-bit activations in experts.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT

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
