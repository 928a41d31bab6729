"""Parameters that plain ONNX operators read as they are, such as the router's bias."""

from __future__ import annotations

from exporters.draft import Draft
from exporters.passes.weights import exact_weight


def lower_parameters(draft: Draft) -> None:
    """Declare every weight that is still a bare placeholder and is used."""
    for name, placeholder in list(draft.graph.initializers.items()):
        if name in draft.plan and placeholder.uses():
            placeholder.replace_all_uses_with(exact_weight(draft, name))
