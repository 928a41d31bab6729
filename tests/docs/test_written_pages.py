"""Pages that scripts write are what the scripts write now."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ..command_lines import parse  # noqa: TID252
from .pages import ROOT, list_command_lines, list_pages, load_script

COMMANDS = load_script("write_command_pages")
API = load_script("write_api_page")
RUN_COMMANDS = "run python scripts/write_command_pages.py"
RUN_API = "run python scripts/write_api_page.py"


def test_every_command_has_its_page_and_no_other() -> None:
    there = {file.stem for file in COMMANDS.FOLDER.glob("*.md")}
    assert there == {"index", *COMMANDS.GROUP.commands}, RUN_COMMANDS


@pytest.mark.parametrize("name", COMMANDS.write_pages())
def test_page_of_a_command_is_what_the_script_writes(name: str) -> None:
    file = COMMANDS.FOLDER / name
    assert file.is_file(), RUN_COMMANDS
    assert file.read_text(encoding="utf-8") == COMMANDS.write_pages()[name], RUN_COMMANDS


def test_navigation_has_every_command() -> None:
    text = COMMANDS.NAVIGATION.read_text(encoding="utf-8")
    assert COMMANDS.write_navigation(text) == text, RUN_COMMANDS
    assert all(f": commands/{name}.md\n" in text for name in COMMANDS.GROUP.commands)


@pytest.mark.parametrize("name", list(COMMANDS.GROUP.commands))
def test_page_of_a_command_tells_every_option(name: str) -> None:
    page = (COMMANDS.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for param in COMMANDS.GROUP.commands[name].params:
        for option in (*param.opts, *param.secondary_opts):
            written = option if option.startswith("-") else (param.metavar or option)
            assert f"`{written}" in page, RUN_COMMANDS
    for title in ("Name", "Synopsis", "Options", "Examples", "Exit status", "See also"):
        assert f"\n## {title}\n" in page


def test_every_variable_of_ours_is_told() -> None:
    files = [
        file
        for package in ("lfm2_deploy", "exporters", "runtimes")
        for file in (ROOT / package).rglob("*.py")
    ]
    used = {
        name
        for file in files
        for name in re.findall(r"(?<!_)LFM2_DEPLOY_[A-Z_]+\b", file.read_text(encoding="utf-8"))
    }
    told = {one.name for one in COMMANDS.VARIABLES if one.name.startswith("LFM2_")}
    assert told == used, "tell it in VARIABLES of scripts/write_command_pages.py"


def test_page_of_the_python_api_is_what_the_script_writes() -> None:
    assert (ROOT / "docs" / "python.md").read_text(encoding="utf-8") == API.write_python(), RUN_API


def test_page_of_errors_is_what_the_script_writes() -> None:
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == API.write_errors(), RUN_API


def test_everything_that_programs_import_is_told() -> None:
    import lfm2_deploy

    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert all(f"\n### {name}\n" in page for name in lfm2_deploy.__all__)
    assert "0x" not in page, "an address, which changes from run to run"


def test_command_lines_in_guides_are_taken_by_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Guides call models by name once they are pulled.
    manifest = {"schema_version": 1, "quantization": {}}
    for name in ("LFM2-350M-cpu-int4", "demo-cpu-int4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path))
    lines = [
        (page.name, line)
        for page in list_pages()
        if page.parent.name != "commands"
        for line in list_command_lines(page.read_text(encoding="utf-8"))
    ]
    assert len(lines) > 30
    for name, line in lines:
        try:
            parse(line)
        except Exception as error:
            pytest.fail(f"{name}: {line}: {error}")
