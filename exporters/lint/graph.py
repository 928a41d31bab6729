"""A graph as rules see it: nodes in order, the types and shapes of values as far as known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MICROSOFT = "com.microsoft"
# Of the operators of an OpenVINO IR, which have names of their own.
OPENVINO = "openvino"

Dim = int | str | None
Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor between nodes.

    Args:
        name: in its graph.
        type: NumPy's word for the elements, such as "float16"; None where it is not known.
        shape: dimensions, names of symbolic ones; None where the rank is not known.
        constant: whether it is an initializer, or computed from initializers alone.
        content: the elements of a small constant, flat; None of all others.
        is_input: whether the caller gives it.
    """

    name: str
    type: str | None = None
    shape: Shape | None = None
    constant: bool = False
    content: tuple[Any, ...] | None = None
    is_input: bool = False

    @property
    def rank(self) -> int | None:
        """How many dimensions it has, if that is known."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Args:
        name: in its graph, or its first output's where it has none.
        op: operator.
        domain: of the operator; empty for ONNX's own.
        since: the version of the operator's definition that the graph's opset selects; None
            where nobody here knows the operator.
        inputs: None for one left out.
        outputs: None for one left out.
        attributes: numbers, strings and lists of them; tensors and graphs only by presence.
        folded: whether it has constants alone for inputs, and so is gone before anything runs.
        is_function: whether ONNX defines it by other operators.
    """

    name: str
    op: str
    domain: str
    since: int | None
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    folded: bool = False
    is_function: bool = False

    @property
    def operator(self) -> str:
        """The operator with its domain."""
        return f"{self.domain}:{self.op}" if self.domain else self.op

    def integer(self, name: str, default: int) -> int:
        """An attribute that should be a whole number; the default where it is another thing."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def input(self, index: int) -> Value | None:
        """An input; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int) -> Value | None:
        """An output; None where it is left out."""
        return self.outputs[index] if index < len(self.outputs) else None


@dataclass(frozen=True, slots=True)
class Graph:
    """One file's graph, those of its control flow included.

    Args:
        file: name of the file.
        nodes: in an order in which they could run.
        inputs: what the caller gives.
        outputs: what the caller gets.
        opsets: domain -> version.
        constants: every initializer.
        names_of_states: of an OpenVINO graph, its variables.
    """

    file: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opsets: Mapping[str, int] = field(default_factory=dict)
    constants: tuple[Value, ...] = ()
    names_of_states: tuple[str, ...] = ()

    @property
    def live(self) -> Iterator[Node]:
        """Nodes that are left when constants have been folded."""
        return (node for node in self.nodes if not node.folded)

    def find(self, op: str, domain: str = "") -> Iterator[Node]:
        """Nodes of one operator."""
        return (node for node in self.live if node.op == op and node.domain == domain)

    def find_fused(self, op: str) -> Iterator[Node]:
        """Nodes of one of Microsoft's operators."""
        return self.find(op, MICROSOFT)
