"""How `--help` reads: options in groups, every command with its whole first sentence.

typer writes groups only into help that rich draws, and types and ranges as a programmer reads
them. Enters a command's parameters; leaves lines. What they say stands beside each command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

Record = tuple[str, str]

_OPTIONS, _COMMANDS = "Options", "Commands"
# How typer writes a default that is described rather than given: [default: (one a core); ...].
_DESCRIBED = re.compile(r"(\[default: )\(([^)]*)\)(?=[;\]])")
_TYPE = re.compile(r" <[^>]*>")
_BRACES = re.compile(r"\{(.*)\}(?:\.\.\.)?")
_AT_LEAST = re.compile(r"\bx>=([\d.]+)")
_BETWEEN = re.compile(r"([\d.]+)<=x<=([\d.]+)")
# A list of all commands tells each in a sentence, however long.
_WHOLE = 200


class Command(TyperCommand):
    """A command with its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options."""
        for title, records in list_records(self, ctx):
            with formatter.section(title):
                formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, without typer's braces around what is required."""
        return [_strip(piece) for piece in super().collect_usage_pieces(ctx)]


class HelpGroup(TyperGroup):
    """A group that lists its commands by what they are for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the list of options, then that of commands: as typer does, told our way."""
        for title, records in list_records(self, ctx):
            with formatter.section(title):
                formatter.write_dl(records)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of commands."""
        width = max(map(len, self.commands))
        for title, names in list_panels(self):
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:{width}}", tell(self.commands[name])) for name in names]
                )


def tell(command: Any) -> str:
    """The first sentence of a command's help, whole."""
    return str(command.get_short_help_str(_WHOLE))


def list_panels(group: Any) -> list[tuple[str, list[str]]]:
    """The names of a group's commands by the panel they were added with, in order."""
    panels: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if not command.hidden:
            panels.setdefault(command.rich_help_panel or _COMMANDS, []).append(name)
    return list(panels.items())


def list_records(command: Any, context: Any) -> list[tuple[str, list[Record]]]:
    """What a command takes: (title, [(how it is written, what it is)]), arguments first.

    Args:
        command: a typer command or group.
        context: its context.
    """
    groups: dict[str, list[Record]] = {}
    for param in order(command.get_params(context)):
        record = param.get_help_record(context)
        if record is not None:
            groups.setdefault(name_panel(param), []).append(
                (_TYPE.sub("", record[0]), _reword(record[1] or ""))
            )
    return list(groups.items())


def order(params: Iterable[Any]) -> list[Any]:
    """Arguments, then options without a panel, then those of each panel together."""
    ranked = list(params)
    ranks = {"Arguments": 0, _OPTIONS: 1}
    for param in ranked:
        ranks.setdefault(name_panel(param), len(ranks))
    return sorted(ranked, key=lambda param: ranks[name_panel(param)])


def name_panel(param: Any) -> str:
    """The title that a parameter is listed under."""
    if param.param_type_name == "argument":
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or _OPTIONS


def _reword(text: str) -> str:
    text = _BETWEEN.sub(lambda match: f"{_tidy(match[1])} to {_tidy(match[2])}", text)
    text = _AT_LEAST.sub(lambda match: f"{_tidy(match[1])} or more", text)
    return _DESCRIBED.sub(r"\1\2", text)


def _tidy(number: str) -> str:
    return number.removesuffix(".0")


def _strip(piece: str) -> str:
    match = _BRACES.fullmatch(piece)
    return piece if match is None else match[1]
