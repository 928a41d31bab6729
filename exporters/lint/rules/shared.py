"""Rules that several of ONNX Runtime's providers share, made for each from its table of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from exporters.lint.graph import Graph, Node, Value
from exporters.lint.kernels import KernelTable, find_misfit, is_inlined, load_table
from exporters.lint.rule import Fault, Rule, rule
from lfm2_deploy.findings import Outcome

# Up to so many elements an initializer does not keep a node off the CPU.
_SMALL_ELEMENTS = 100
_NEXT = "lower it to operators that are there"
_PLACEMENT = "GetCpuPreferredNodes in core/framework/fallback_cpu_capability.cc, onnxruntime 1.30.0"
CpuInputs = Callable[[Node], tuple[int, ...]]


def make_kernel_rules(target: str, table: str, outcome: Outcome, source: str) -> tuple[Rule, ...]:
    """Rules that no kernel takes an operator, a version of it, or its types.

    Args:
        target: the first half of the rules' ids.
        table: name of the table of kernels.
        outcome: what becomes of a node without a kernel.
        source: where the table is from.
    """

    @rule(f"{target}/not-registered", outcome, advice=_NEXT, source=source)
    def not_registered(graph: Graph) -> Iterator[Fault]:
        """The provider has no kernel of this name."""
        for node in graph.live:
            if not load_table(table).find(node) and not is_inlined(node):
                yield Fault("no kernel of this operator", "an operator of the provider", node)

    @rule(
        f"{target}/version",
        outcome,
        advice="export with an opset that selects one of these versions",
        source=f"VerifyVersion in core/framework/kernel_registry.cc; {source}",
    )
    def version(graph: Graph) -> Iterator[Fault]:
        """A kernel takes the versions of an operator that it was registered for. One registered
        without an end takes exactly its own, so a newer opset can lose operators it had."""
        kernels = load_table(table)
        for node in graph.live:
            found = kernels.find(node)
            if found and not kernels.find_version(node) and not is_inlined(node):
                yield Fault(_name_version(graph, node), _name_versions(kernels, node), node)

    @rule(
        f"{target}/types",
        outcome,
        advice="cast to a type that the kernel takes, or compute it before the graph",
        source=source,
    )
    def types(graph: Graph) -> Iterator[Fault]:
        """A kernel takes the types of elements that it was registered for."""
        for node, seen, expected in find_misfits(graph, load_table(table)):
            if not is_inlined(node):
                yield Fault(seen, expected, node)

    return not_registered, version, types


def _name_version(graph: Graph, node: Node) -> str:
    opset = graph.opsets.get(node.domain)
    return f"version {node.since}" + (f", of opset {opset}" if opset else "")


def _name_versions(table: KernelTable, node: Node) -> str:
    ranges = [(kernel.since, kernel.until) for kernel in table.find(node)]
    words = [f"{a}" if a == b else f"{a} to {b}" for a, b in sorted(set(ranges))]
    return f"version {', '.join(words)}"


def find_misfits(graph: Graph, table: KernelTable) -> Iterator[tuple[Node, str, str]]:
    """Nodes whose operator and version have kernels, none of which takes the types.

    Returns:
        The node, what its types are, and what kernels take.
    """
    for node in graph.live:
        kernels = table.find_version(node)
        misfits = [find_misfit(node, kernel) for kernel in kernels]
        wrong = [misfit for misfit in misfits if misfit is not None]
        if kernels and len(wrong) == len(kernels):
            taken = dict.fromkeys(expected for seen, expected in wrong if seen == wrong[0][0])
            yield node, wrong[0][0], " or ".join(taken)


def make_host_rule(target: str, table: str, cpu_inputs: CpuInputs) -> Rule:
    """The rule that arithmetic with shapes is done on the CPU.

    Args:
        target: the first half of the rule's id.
        table: name of the table of kernels.
        cpu_inputs: the inputs of a node that its kernel reads on the CPU.
    """

    @rule(
        f"{target}/shapes-on-cpu",
        Outcome.REMARK,
        advice="none is needed; `session.disable_cpu_ep_fallback` refuses such a graph, though",
        source=_PLACEMENT,
    )
    def shapes_on_cpu(graph: Graph) -> Iterator[Fault]:
        """What is computed from shapes alone stays on the CPU: ONNX Runtime puts it there on
        purpose, since a few integers are not worth a copy. Graph capture allows it."""
        for node in find_host_nodes(graph, load_table(table), cpu_inputs):
            yield Fault("computed from shapes", "nothing else: this is how it should be", node)

    return shapes_on_cpu


def find_host_nodes(graph: Graph, table: KernelTable, cpu_inputs: CpuInputs) -> list[Node]:
    """Nodes that ONNX Runtime leaves on the CPU since their inputs come from shapes alone."""
    found: list[Node] = []
    on_cpu: set[str] = set()
    for node in graph.live:
        outputs = {value.name for value in node.outputs if value is not None}
        if node.op in ("Shape", "Size") and not node.domain:
            on_cpu |= outputs
        elif any(value is not None and value.name in on_cpu for value in node.inputs):
            wanted = cpu_inputs(node) if table.choose(node) else ()
            if _stays(node, on_cpu, wanted):
                found.append(node)
                on_cpu |= outputs
    return found


def _stays(node: Node, on_cpu: set[str], cpu_inputs: tuple[int, ...]) -> bool:
    given = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    for index, value in given:
        if value.type in ("float16", "bfloat16"):
            return False
        if is_small(value) or value.is_input:
            continue
        if value.name not in on_cpu or index in cpu_inputs:
            return False
    return True


def is_small(value: Value) -> bool:
    """Whether it is a constant of a few elements."""
    if not value.constant or value.shape is None:
        return False
    count = 1
    for dim in value.shape:
        count *= dim if isinstance(dim, int) else _SMALL_ELEMENTS + 1
    return count <= _SMALL_ELEMENTS


def list_given(node: Node, indices: dict[int, str]) -> list[str]:
    """Names of those inputs that a node has."""
    return [name for index, name in indices.items() if node.input(index) is not None]


def list_set(node: Node, defaults: dict[str, object]) -> list[str]:
    """ "name=value" of those attributes that are set to something else than nothing."""
    return [
        f"{name}={node.attributes[name]}"
        for name, default in defaults.items()
        if node.attributes.get(name, default) != default
    ]


def find_other_caches(graph: Graph) -> Iterator[tuple[Node, str, str]]:
    """Attention whose past keys or values are of another type than its query.

    Returns:
        The node, what is seen, and what is taken.
    """
    for node in graph.find_fused("GroupQueryAttention"):
        query = node.input(0)
        for index, name in ((3, "past_key"), (4, "past_value")):
            past = node.input(index)
            types = [value.type for value in (query, past) if value is not None and value.type]
            if len(types) == 2 and types[0] != types[1]:
                yield node, f"{name} of {types[1]}, query of {types[0]}", "one type"
