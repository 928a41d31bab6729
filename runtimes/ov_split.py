"""Take a file of several graphs apart; `lfm2_deploy/static_graphs.py` says which there are."""

from __future__ import annotations

import openvino as ov

from runtimes.static_graph import begins


def split_graph(model: ov.Model) -> dict[str, ov.Model]:
    """The graphs of a file by the input each begins with, in their order.

    A graph begins with token embeddings or with what goes to or comes from experts; what
    else it reads (states, masks) belongs to it, and may be read by others, too.
    """
    ancestors: dict[str, set[str]] = {}
    for node in model.get_ordered_ops():
        own: set[str] = set()
        if node.get_type_name() == "Parameter":
            own.add(node.output(0).any_name)
        for value in node.input_values():
            own |= ancestors[value.get_node().get_friendly_name()]
        ancestors[node.get_friendly_name()] = own
    parameters = {p.output(0).any_name: p for p in model.get_parameters()}
    groups: dict[str, list[ov.Node]] = {name: [] for name in parameters if begins(name)}
    for result in model.get_results():
        (start,) = filter(begins, ancestors[result.get_friendly_name()])
        groups[start].append(result)
    graphs = {}
    for start, results in groups.items():
        needed = set().union(*(ancestors[r.get_friendly_name()] for r in results))
        inputs = [p for name, p in parameters.items() if name in needed]
        # Nodes that several graphs read are copied, so that each is compiled on its own.
        graphs[start] = ov.Model(results, inputs, start).clone()
    return graphs
