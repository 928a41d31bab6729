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
    """The node that made a value's elements, behind casts and changes of shape.

    None as well where values are made of each other in a circle: no such graph can run.
    """
    source = _follow(value, made_by, PASSING)
    return made_by.get(source.name) if source is not None else None


def trace(value: Value | None, made_by: Mapping[str, Node]) -> Value | None:
    """The value that another's elements came from, behind casts and changes of shape.

    None where there is none, or where values are made of each other in a circle.
    """
    return _follow(value, made_by, PASSING | {"Multiply", "Subtract"})


def _follow(
    value: Value | None, made_by: Mapping[str, Node], passing: frozenset[str]
) -> Value | None:
    met: set[str] = set()
    while value is not None and (maker := made_by.get(value.name)) and maker.op in passing:
        if value.name in met:
            return None
        met.add(value.name)
        value = maker.input(0)
    return value
