"""Every rule finds its planted fault, and lets the twin without it pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.lint.rule import Rule, RuleSet, check_ids
from lfm2_deploy.findings import Outcome
from lfm2_deploy.registry import LINTS

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
