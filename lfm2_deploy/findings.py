"""What `lint` finds: plain data, so that the command line can show it without knowing graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Outcome(StrEnum):
    """What a target does with a node, worst first.

    A remark is no fault: the node does its work there, and something about it is worth knowing.
    """

    REFUSED = "refused"
    WRONG = "silently wrong"
    ELSEWHERE = "runs elsewhere"
    REMARK = "remark"


@dataclass(frozen=True, slots=True)
class Finding:
    """Nodes of one operator about which one rule says the same.

    Args:
        rule: id of the rule, such as "directml/not-registered".
        outcome: what becomes of the nodes.
        operator: their operator, with its domain before a colon unless it is ONNX's own; empty
            where the rule is about a graph as a whole.
        nodes: their names, in the graphs' order; of a rule about a graph, the file's name.
        seen: what is there.
        expected: what the target takes.
        advice: what to do.
        source: where it is known from: file and version, or issue.
    """

    rule: str
    outcome: Outcome
    operator: str
    nodes: tuple[str, ...]
    seen: str
    expected: str
    advice: str
    source: str


@dataclass(frozen=True, slots=True)
class LintReport:
    """What became of one look.

    Args:
        target: whose rules were applied.
        graphs: names of the files looked at.
        nodes: how many nodes they hold.
        rules: how many rules there are.
        findings: worst first.
        unchecked: what was not looked at, or cannot be told from a graph; one line each.
    """

    target: str
    graphs: tuple[str, ...]
    nodes: int
    rules: int
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are more than a remark."""
        return tuple(found for found in self.findings if found.outcome is not Outcome.REMARK)


class Linter(Protocol):
    """The rules of one target."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Files it can read, such as (".onnx",)."""
        ...

    def lint(self, graphs: Sequence[Path]) -> LintReport:
        """Apply all rules to all graphs.

        Raises:
            BundleError: a file cannot be read as a graph.
        """
        ...
