"""The model under construction, as passes see it, and the tool they edit it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from exporters.quantize.plan import TensorPlan
from exporters.weight_book import WeightBook
from lfm2_deploy.config import Lfm2Config

# The domain of the traced primitives: one operator for each thing that a target may
# have an operator of its own for. No runtime knows it; passes must leave none behind.
SEMANTIC = "lfm2"
MICROSOFT = "com.microsoft"


@dataclass
class Draft:
    """A graph on its way to a target.

    Args:
        config: the model.
        graph: edited in place by the passes.
        plan: canonical tensor name -> how it is stored.
        book: the initializers declared so far and how to fill them.
        context_length: most tokens a row may hold.
        dtype: what activations are computed in.
        bound: names of initializers that the host binds as inputs: of several graphs on one
            device each would otherwise hold a copy.
        shared: values that several lowered nodes use, by a name of the pass's choice.
    """

    config: Lfm2Config
    graph: ir.Graph
    plan: Mapping[str, TensorPlan]
    book: WeightBook
    context_length: int
    dtype: ir.DataType = ir.DataType.FLOAT
    bound: list[str] = field(default_factory=list)
    shared: dict[str, ir.Value] = field(default_factory=dict)

    def find(self, op_type: str, domain: str = SEMANTIC) -> list[ir.Node]:
        """Every node of one operator, in graph order."""
        return [n for n in self.graph if n.op_type == op_type and n.domain == domain]


class Rewriter:
    """Builds the nodes that take the place of one node."""

    def __init__(self, draft: Draft, node: ir.Node) -> None:
        self.draft, self.node = draft, node
        # Begins the names of the nodes built.
        self.prefix = node.name or node.op_type
        self._count = 0

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """Insert a node before the one replaced; returns its value, or list of values."""
        self._count += 1
        name = f"{self.prefix}/{op_type}_{self._count}"
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}:{number}"
        self.draft.graph.insert_before(self.node, node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector, declared once for each content."""
        return self.draft.book.constant_ints(self.draft.graph, values)

    def finish(self, *values: ir.Value) -> None:
        """Let `values` stand for the replaced node's outputs, and drop the node."""
        outputs = self.draft.graph.outputs
        for old, new in zip(self.node.outputs, values, strict=True):
            if any(old is output for output in outputs):
                new.name, new.type, new.shape = old.name, old.type, old.shape
                old.name = f"{old.name}.replaced"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.draft.graph.remove(self.node, safe=True)


def attribute(node: ir.Node, name: str) -> Any:
    """An attribute's plain value."""
    return node.attributes[name].value


def name_of(value: ir.Value | None) -> str:
    """The name of an input that must be there and have one, such as a weight."""
    assert value is not None
    assert value.name is not None
    return value.name
