"""`--help` teaches: every command has a purpose, examples that parse, and next steps."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import typer

from lfm2_deploy.commands.failures import PROGRAM
from lfm2_deploy.commands.help import list_params

from ..command_lines import GROUP, parse  # noqa: TID252

NAMES = list(GROUP.commands)
# As wide as a terminal is.
_COLUMNS = 80


def read_block(text: str, title: str) -> list[str]:
    """The lines below a title of a docstring, up to the next empty line."""
    _, _, rest = text.partition(f"{title}:\n")
    return [line.strip() for line in rest.partition("\n\n")[0].splitlines() if line.strip()]


def list_examples() -> list[str]:
    named = [read_block(GROUP.commands[name].help, "Examples") for name in NAMES]
    start = [re.split(r" {3,}", line)[0] for line in read_block(GROUP.help, "Start here")]
    return [*start, *(line for lines in named for line in lines)]


@pytest.mark.parametrize("name", NAMES)
def test_purpose_is_one_short_sentence(name: str) -> None:
    purpose = GROUP.commands[name].help.partition("\n\n")[0]
    assert purpose.endswith(".")
    assert "\n" not in purpose
    assert len(purpose) <= _COLUMNS, "the list of commands tells it in one or two lines"


@pytest.mark.parametrize("name", NAMES)
def test_command_shows_examples_of_itself(name: str) -> None:
    examples = read_block(GROUP.commands[name].help, "Examples")
    assert len(examples) >= 2
    assert all(f"{PROGRAM} {name}" in line for line in examples)


@pytest.mark.parametrize("line", list_examples())
def test_example_is_taken_by_its_command(line: str) -> None:
    assert parse(line) is not None


def test_wrong_example_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("lfm2-deploy chat ./bundle --no-such-option")


@pytest.mark.parametrize("name", NAMES)
def test_next_steps_are_commands_that_there_are(name: str) -> None:
    lines = read_block(GROUP.commands[name].help, "See also")
    assert lines, "a block 'See also:' behind the examples"
    others = [line.split()[1] for line in lines]
    assert set(others) <= set(NAMES) - {name}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained(name: str) -> None:
    command = GROUP.commands[name]
    context = typer.Context(command, info_name=name)
    for _, params in list_params(command, context):
        for told in params:
            assert len(told.text.partition("  [")[0]) >= 10, told.written


def test_options_stand_in_groups_without_typers_notation(run: Callable) -> None:
    told = run("generate", "--help").stdout
    assert "Usage: lfm2-deploy generate [OPTIONS] BUNDLE [PROMPT]...\n" in told
    assert "\nHow to choose tokens:\n  --greedy " in told
    assert "\n  BUNDLE  The folder" in told
    assert "[default: one a core; 1 or more]" in " ".join(told.split())
    for notation in ("<path>", "{BUNDLE}", "x>=", "(one a core)"):
        assert notation not in told


def test_commands_stand_in_groups_with_whole_sentences(run: Callable) -> None:
    told = run("--help").stdout
    assert "\nMake bundles:\n  export    Make a bundle: " in told
    assert "..." not in told.partition("Try and plan:")[2]
