"""Dense SwiGLU blocks in two uneven parts, as an NPU computes them faster.

w2(silu(w1 x) * w3 x) is a sum over the inner width, so it can be cut there. Intel's compiler
keeps a part's activations near its processors and spills those of the whole: for LFM2-350M
and 128 tokens it estimates 419 us a layer in parts of 1536 and 3072, 549 us uncut, and
430 to 580 us for other cuts (docs/npu.md). One token at a time costs 4 % more.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.clean_up import remove_unused
from exporters.passes.ov.linear import matmul
from exporters.passes.ov.weights import Cut, projection_weight
from exporters.passes.weights import weight_shape

_MULTIPLE = 64


def cut_feed_forward(draft: Draft) -> None:
    """Lower every dense feed-forward block."""
    for down in draft.find("Linear"):
        name = name_of(down.inputs[1])
        if name.endswith(".feed_forward.w2.weight"):
            _cut(draft, down, name.removesuffix("w2.weight"))
    # The uncut projections are left unread.
    remove_unused(draft)


def _cut(draft: Draft, down: ir.Node, prefix: str) -> None:
    gates = [n for n in draft.find("Linear") if name_of(n.inputs[1]) == f"{prefix}w1.weight"]
    x = gates[0].inputs[0]
    width = weight_shape(draft, f"{prefix}w2.weight")[1]
    rewriter, y, start = Rewriter(draft, down), None, 0
    for size in choose_parts(width):
        end = start + size
        rows = Cut(0, start, end)
        gate, up = (
            matmul(rewriter, x, projection_weight(rewriter, [f"{prefix}{w}.weight"], rows))
            for w in ("w1", "w3")
        )
        gated = rewriter.op("Mul", [gate, rewriter.op("Sigmoid", [gate])])
        gated = rewriter.op("Mul", [gated, up])
        weight = projection_weight(rewriter, [f"{prefix}w2.weight"], Cut(1, start, end))
        part = matmul(rewriter, gated, weight)
        y = part if y is None else rewriter.op("Add", [y, part])
        start = end
    assert y is not None
    rewriter.finish(y)


def choose_parts(width: int) -> tuple[int, ...]:
    """A third and two thirds of a width, in whole multiples of 64; a small one stays whole."""
    third = round(width / 3 / _MULTIPLE) * _MULTIPLE
    return (third, width - third) if 0 < third < width else (width,)
