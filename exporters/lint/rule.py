"""What a rule is, and how a set of them is applied.

A rule is a function from a graph to its faults, with an id, an outcome, advice and a source;
its docstring is its text in docs/lint.md. A target's rules are a value, so a package of its own
can join ours with its own and name the result in the registry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters.lint.graph import Graph, Node
from exporters.lint.kernels import is_inlined
from exporters.lint.read_ir import read_ir
from exporters.lint.read_onnx import read_onnx
from lfm2_deploy.findings import Finding, LintReport, Outcome

Check = Callable[[Graph], Iterable["Fault"]]
_READERS: dict[str, Callable[[Path], Graph]] = {".onnx": read_onnx, ".xml": read_ir}


@dataclass(frozen=True, slots=True)
class Fault:
    """One place a rule is about.

    Args:
        seen: what is there.
        expected: what the target takes.
        node: None where the fault is the whole graph's.
    """

    seen: str
    expected: str
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is known of a target.

    Args:
        id: target and name, such as "directml/not-registered".
        outcome: what becomes of a node it finds.
        advice: what to do about it.
        source: where it is known from: file and version, or issue.
        check: finds the faults.
        text: what the rule says, for people.
    """

    id: str
    outcome: Outcome
    advice: str
    source: str
    check: Check
    text: str


def rule(id: str, outcome: Outcome, *, advice: str, source: str) -> Callable[[Check], Rule]:
    """Make a rule of a function; its docstring becomes the rule's text."""

    def make(check: Check) -> Rule:
        text = " ".join((check.__doc__ or "").split())
        return Rule(id, outcome, advice, source, check, text)

    return make


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of a target: a `lfm2_deploy.findings.Linter`.

    Args:
        target: its name.
        rules: in any order.
        suffixes: files it reads.
        open_questions: what no rule can tell, one line each; shown with every report.
    """

    target: str
    rules: tuple[Rule, ...]
    suffixes: tuple[str, ...] = (".onnx",)
    open_questions: tuple[str, ...] = ()

    def lint(self, graphs: Sequence[Path]) -> LintReport:
        """Apply all rules to all graphs.

        Args:
            graphs: files of the kinds in `suffixes`.

        Raises:
            BundleError: one cannot be read.
        """
        read = [_READERS[path.suffix](path) for path in graphs]
        found = [
            (rule, graph.file, fault)
            for rule in self.rules
            for graph in read
            for fault in rule.check(graph)
        ]
        return LintReport(
            self.target,
            tuple(graph.file for graph in read),
            sum(len(graph.nodes) for graph in read),
            len(self.rules),
            group(found),
            (*list_gaps(read), *self.open_questions),
        )


def count_unknown(graph: Graph) -> int:
    """How many values between live nodes have no known type."""
    values = [value for node in graph.live for value in (*node.inputs, *node.outputs)]
    return len({value.name for value in values if value is not None and value.type is None})


def list_gaps(graphs: Sequence[Graph]) -> list[str]:
    """What of these graphs no rule could look at, one line each."""
    unknown = sum(map(count_unknown, graphs))
    inlined = sum(is_inlined(node) for graph in graphs for node in graph.live)
    lines = {
        f"types of {unknown} values are not known: rules about types say nothing of them": unknown,
        f"what becomes of nodes that ONNX Runtime takes apart ({inlined})": inlined,
    }
    return [line for line, count in lines.items() if count]


def group(found: Iterable[tuple[Rule, str, Fault]]) -> tuple[Finding, ...]:
    """Join what is said of several nodes in the same words; worst first, then the most."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    rules: dict[str, Rule] = {}
    for rule, file, fault in found:
        operator = fault.node.operator if fault.node else ""
        key = (rule.id, operator, fault.seen, fault.expected)
        name = fault.node.name if fault.node else file
        groups.setdefault(key, []).append(name)
        rules[rule.id] = rule
    findings = [
        Finding(id, rules[id].outcome, operator, tuple(names), seen, expected, *_end(rules[id]))
        for (id, operator, seen, expected), names in groups.items()
    ]
    order = list(Outcome)
    return tuple(sorted(findings, key=lambda one: (order.index(one.outcome), -len(one.nodes))))


def _end(rule: Rule) -> tuple[str, str]:
    return rule.advice, rule.source


def check_ids(rules: Iterable[Rule]) -> None:
    """Refuse two rules of one id.

    Raises:
        ValueError: there are.
    """
    twice = [id for id, count in Counter(rule.id for rule in rules).items() if count > 1]
    if twice:
        raise ValueError(f"rules of the same id: {', '.join(twice)}")
