"""lfm2::Embedding -> Gather, or GatherBlockQuantized over the head's own bytes."""

from __future__ import annotations

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import float_weight, quantized_table


def lower_embedding(draft: Draft) -> None:
    """Lower the token embedding; padding ids read row 0, whose values go nowhere."""
    for node in draft.find("Embedding"):
        ids, weight = node.inputs
        rewriter, name = Rewriter(draft, node), name_of(weight)
        plan = draft.plan[name]
        ids = rewriter.op("Max", [ids, rewriter.ints(0)])
        if not plan.is_quantized:
            x = rewriter.op("Gather", [float_weight(rewriter, name), ids], axis=0)
        else:
            table, scales = quantized_table(draft, name)
            x = rewriter.op(
                "GatherBlockQuantized", [table, ids, scales], domain=MICROSOFT,
                bits=plan.bits, block_size=plan.group, gather_axis=0, quantize_axis=1,
            )  # fmt: skip
        rewriter.finish(x)
