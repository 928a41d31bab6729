"""Leave one of several graphs that share a draft: onnxruntime runs a file as a whole."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporters.draft import Draft
from exporters.passes.clean_up import leave_only


def only_segment(start: str) -> Callable[[Draft], None]:
    """A pass that leaves what depends on the input `start`."""

    def cut(draft: Draft) -> None:
        graph = draft.graph
        starting = {value for value in graph.inputs if value.name == start}
        reached = _follow(graph, starting)
        outputs = [value for value in graph.outputs if value in reached]
        needed = _trace_back(outputs)
        inputs = [value for value in graph.inputs if value in needed]
        leave_only(draft, inputs, outputs)

    return cut


def _follow(graph: ir.Graph, values: set[ir.Value]) -> set[ir.Value]:
    """All values that depend on some."""
    reached = set(values)
    for node in graph:
        if any(value in reached for value in node.inputs if value is not None):
            reached.update(node.outputs)
    return reached


def _trace_back(outputs: list[ir.Value]) -> set[ir.Value]:
    """All values that some depend on."""
    found: set[ir.Value] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        producer = value.producer()
        if producer is not None:
            pending += [v for v in producer.inputs if v is not None]
    return found
