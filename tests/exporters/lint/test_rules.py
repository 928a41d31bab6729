"""Every rule finds its planted fault, and lets the twin without it pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.lint.rule import Rule, RuleSet, check_ids
from lfm2_deploy.findings import Outcome
from lfm2_deploy.registry import LINTS

from .building import Sketch
from .building import op as node
from .planted import PLANTED

SETS: dict[str, RuleSet] = {name: entry.load() for name, entry in LINTS.items()}
RULES = [(name, rule) for name, rules in SETS.items() for rule in rules.rules]
EVERY_RULE = pytest.mark.parametrize(("target", "rule"), RULES, ids=[rule.id for _, rule in RULES])


def run_rule(target: str, rule: Rule, folder: Path, planted: bool) -> list[str]:
    """What one rule says of its fault, or of the twin."""
    path = PLANTED[rule.id](planted).save(folder)
    report = SETS[target].lint([path])
    return [found.seen for found in report.findings if found.rule == rule.id]


@EVERY_RULE
def test_planted_fault_found(target: str, rule: Rule, tmp_path: Path) -> None:
    assert run_rule(target, rule, tmp_path, planted=True)


@EVERY_RULE
def test_twin_without_the_fault_passes(target: str, rule: Rule, tmp_path: Path) -> None:
    assert run_rule(target, rule, tmp_path, planted=False) == []


@EVERY_RULE
def test_rule_says_what_why_and_from_where(target: str, rule: Rule) -> None:
    assert rule.id.startswith(f"{target}/")
    assert rule.text.endswith(".")
    assert rule.advice
    assert rule.source


def test_no_plant_without_a_rule() -> None:
    assert set(PLANTED) == {rule.id for _, rule in RULES}


def test_two_rules_of_one_id_refused() -> None:
    rule = RULES[0][1]
    with pytest.raises(ValueError, match=rule.id):
        check_ids([rule, rule])


def test_outcomes_come_worst_first() -> None:
    assert [str(outcome) for outcome in Outcome] == [
        "refused",
        "silently wrong",
        "runs elsewhere",
        "remark",
    ]


@pytest.mark.parametrize("op", ["RMSNormalization", "Attention"])
def test_function_with_a_kernel_on_the_cpu_goes_there(op: str, tmp_path: Path) -> None:
    """ONNX defines both by other operators, which does not help DirectML: the CPU takes them."""
    inputs, constants = ("x w", {"w": ("float32", [64])}) if op[0] == "R" else ("x x x", {})
    more = {} if op[0] == "R" else {"q_num_heads": 4, "kv_num_heads": 4}
    path = Sketch([node(op, inputs, **more)], constants=constants, opset=23).save(tmp_path)
    report = SETS["directml"].lint([path])
    assert [(one.rule, one.operator) for one in report.faults] == [("directml/not-registered", op)]


def test_gaps_are_said(tmp_path: Path) -> None:
    sketch = Sketch([node("ms.NobodysOperator", "x", "h"), node("Mish", "h")])
    report = SETS["cpu"].lint([sketch.save(tmp_path)])
    assert report.unchecked == (
        "types of 2 values are not known: rules about types say nothing of them",
        "what becomes of nodes that ONNX Runtime takes apart (1)",
    )


def test_equal_faults_of_several_nodes_are_one_finding(tmp_path: Path) -> None:
    sketch = Sketch([node("ms.QMoE", "x", "h"), node("ms.QMoE", "h"), node("ms.MoE", "y", "z")])
    report = SETS["directml"].lint([sketch.save(tmp_path)])
    assert [(one.operator, one.nodes) for one in report.findings] == [
        ("com.microsoft:QMoE", ("h", "y")),
        ("com.microsoft:MoE", ("z",)),
    ]
