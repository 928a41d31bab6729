"""Write the list of lint's rules into docs/lint.md, behind its introduction.

    python scripts/write_lint_rules.py

A test holds the page against the rules, so run this after changing one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exporters.lint.rule import Rule, RuleSet
from lfm2_deploy.registry import LINTS

PAGE = Path(__file__).parents[1] / "docs" / "lint.md"
MARK = "<!-- Below: written by scripts/write_lint_rules.py -->\n"


def list_rules() -> str:
    """All rules of all targets as Markdown."""
    return "\n".join(line for name in LINTS for line in _write_set(LINTS[name].load())) + "\n"


def _write_set(rules: RuleSet) -> Iterator[str]:
    yield f"\n## {rules.target}\n"
    for rule in rules.rules:
        yield from _write_rule(rule)
    if rules.open_questions:
        yield "Not checked:\n"
        yield from (f"- {line}" for line in rules.open_questions)


def _write_rule(rule: Rule) -> Iterator[str]:
    yield f"### {rule.id}\n"
    yield f"**{rule.outcome}.** {rule.text}\n"
    yield f"*Do:* {rule.advice}. *Source:* {rule.source}.\n"


def main() -> int:
    introduction = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(introduction + MARK + list_rules(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
