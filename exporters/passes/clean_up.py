"""Take out what torch's exporter writes and no runtime wants: sequences and leftovers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.draft import Draft, Rewriter, attribute


def clean_up(draft: Draft) -> None:
    """Turn SplitToSequence + SequenceAt into Split; drop nodes that nothing uses."""
    for node in draft.find("SplitToSequence", domain=""):
        _replace_by_split(draft, node)
    remove_unused(draft)


def remove_unused(draft: Draft) -> None:
    """Drop every node and initializer that no output depends on."""
    model = ir.Model(draft.graph, ir_version=10)
    common.RemoveUnusedNodesPass()(model)


def leave_only(draft: Draft, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    """Give the graph these ends, and drop what lies outside of them."""
    graph = draft.graph
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    remove_unused(draft)


def share_common(draft: Draft) -> None:
    """Compute what several layers compute alike only once."""
    common.CommonSubexpressionEliminationPass()(ir.Model(draft.graph, ir_version=10))


def _replace_by_split(draft: Draft, node: ir.Node) -> None:
    picks = [use.node for use in node.outputs[0].uses()]
    parts = Rewriter(draft, node).op(
        "Split", [node.inputs[0]], outputs=len(picks), axis=attribute(node, "axis"),
        num_outputs=len(picks),
    )  # fmt: skip
    for pick in picks:
        assert pick.inputs[1] is not None
        index = ir.convenience.get_const_tensor(pick.inputs[1])
        assert index is not None
        Rewriter(draft, pick).finish(parts[int(index.numpy())])
    draft.graph.remove(node, safe=True)
