"""lfm2::Linear -> MatMul over a compressed constant; projections of one input are joined."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.ov.weights import projection_weight
from exporters.passes.weights import weight_shape


def join_linear(draft: Draft) -> None:
    """Lower every projection; those that read one input and are stored alike become one product."""
    for nodes in _group(draft):
        _lower(draft, nodes)


def lower_linear(draft: Draft) -> None:
    """Lower every projection on its own."""
    for node in draft.find("Linear"):
        _lower(draft, [node])


def _group(draft: Draft) -> list[list[ir.Node]]:
    groups: dict[object, list[ir.Node]] = {}
    for node in draft.find("Linear"):
        plan = draft.plan[name_of(node.inputs[1])]
        key = (node.inputs[0], plan.bits, plan.group)
        groups.setdefault(key, []).append(node)
    return list(groups.values())


def _lower(draft: Draft, nodes: Sequence[ir.Node]) -> None:
    names = [name_of(node.inputs[1]) for node in nodes]
    rewriter = Rewriter(draft, nodes[0])
    y = matmul(rewriter, nodes[0].inputs[0], projection_weight(rewriter, names))
    if len(nodes) == 1:
        rewriter.finish(y)
        return
    sizes = rewriter.ints(*(weight_shape(draft, name)[0] for name in names))
    parts = rewriter.op("Split", [y, sizes], outputs=len(names), axis=-1)
    for node, part in zip(nodes, parts, strict=True):
        Rewriter(draft, node).finish(part)


def matmul(rewriter: Rewriter, x: ir.Value | None, weight: ir.Value) -> ir.Value:
    """x [..., K] by weight [N, K], as checkpoints lay it out -> [..., N]."""
    turned = rewriter.op("Transpose", [weight], perm=[1, 0])
    y: ir.Value = rewriter.op("MatMul", [x, turned])
    return y
