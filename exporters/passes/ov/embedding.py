"""lfm2::Embedding -> Gather, over the table as the head stores it."""

from __future__ import annotations

from exporters.draft import Draft, Rewriter, name_of
from exporters.passes.ov.weights import projection_weight


def lower_embedding(draft: Draft) -> None:
    """Lower the token embedding."""
    for node in draft.find("Embedding"):
        ids, weight = node.inputs
        rewriter = Rewriter(draft, node)
        table = projection_weight(rewriter, [name_of(weight)])
        rewriter.finish(rewriter.op("Gather", [table, ids], axis=0))
