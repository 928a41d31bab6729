"""docs/lint.md lists the rules as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from exporters.lint.kernels import load_table

ROOT = Path(__file__).parents[3]


def test_page_is_what_the_script_writes() -> None:
    path = ROOT / "scripts" / "write_lint_rules.py"
    spec = importlib.util.spec_from_file_location("write_lint_rules", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    _, mark, rules = script.PAGE.read_text(encoding="utf-8").partition(script.MARK)
    assert mark
    assert rules == script.list_rules(), "run python scripts/write_lint_rules.py"


def test_numbers_of_kernels_are_the_tables() -> None:
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    for name, maker in (("webgpu", "onnxruntime-ep-webgpu 0.4.0"), ("cpu", "onnxruntime 1.32.0")):
        count = sum(map(len, load_table(name).kernels.values()))
        assert f"the {count:,} kernels that {maker} lists" in page
