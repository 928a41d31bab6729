"""Which node a value comes from, behind nodes that do not change what it says."""

from __future__ import annotations

from collections.abc import Mapping

from exporters.lint.graph import Graph, Node, Value

# Between a value and what is made of it, without changing which elements are which.
PASSING = frozenset(
    {
        *("Cast", "Convert", "ConvertLike", "Unsqueeze", "Squeeze", "Reshape", "Transpose"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)


def map_makers(graph: Graph) -> Mapping[str, Node]:
    """Names of values -> the nodes that make them."""
    return {value.name: node for node in graph.nodes for value in node.outputs if value}


def find_maker(value: Value | None, made_by: Mapping[str, Node]) -> Node | None:
    """The node that made a value's elements, behind casts and changes of shape."""
    maker = made_by.get(value.name) if value is not None else None
    while maker is not None and maker.op in PASSING:
        before = maker.input(0)
        maker = made_by.get(before.name) if before is not None else None
    return maker


def trace(value: Value | None, made_by: Mapping[str, Node]) -> Value | None:
    """The value that another's elements came from, behind casts and changes of shape."""
    while value is not None and value.name in made_by:
        maker = made_by[value.name]
        if maker.op not in (*PASSING, "Multiply", "Subtract"):
            return value
        value = maker.input(0)
    return value
