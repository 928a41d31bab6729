"""How `--help` reads: options in groups, every command with its whole first sentence.

typer writes groups only into help that rich draws, and types and ranges as a programmer reads
them. Enters a command's parameters; leaves lines. What they say stands beside each command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from typer.core import TyperCommand, TyperGroup

_ARGUMENTS, _OPTIONS, _COMMANDS = "Arguments", "Options", "Commands"
# How typer writes a default that is described rather than given: [default: (one a core); ...].
_DESCRIBED = re.compile(r"(\[default: )\(([^)]*)\)(?=[;\]])")
_TYPE = re.compile(r" <[^>]*>")
_BRACES = re.compile(r"\{(.*)\}(?:\.\.\.)?")
_AT_LEAST = re.compile(r"\bx>=([\d.]+)")
_BETWEEN = re.compile(r"([\d.]+)<=x<=([\d.]+)")
# A list of all commands tells each in a sentence, however long.
_WHOLE = 200


@dataclass(frozen=True, slots=True)
class Told:
    """One argument or option, as help tells it.

    Args:
        param: typer's object.
        written: how it is written on a command line.
        text: what it is, with its default and range in brackets at the end.
    """

    param: Any
    written: str
    text: str


class Command(TyperCommand):
    """A command with its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options."""
        _write_lists(self, ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line, without typer's braces around what is required."""
        return [_strip(piece) for piece in super().collect_usage_pieces(ctx)]


class HelpGroup(TyperGroup):
    """A group that lists its commands by what they are for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the list of options, then that of commands: as typer does, told our way."""
        _write_lists(self, ctx, formatter)
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


def list_params(command: Any, context: Any) -> list[tuple[str, list[Told]]]:
    """What a command takes, by title, arguments first.

    Args:
        command: a typer command or group.
        context: its context.
    """
    groups: dict[str, list[Told]] = {}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            told = Told(param, _TYPE.sub("", record[0]), _reword(record[1] or ""))
            groups.setdefault(_name_panel(param), []).append(told)
    titles = sorted(groups, key=lambda title: {_ARGUMENTS: 0, _OPTIONS: 1}.get(title, 2))
    return [(title, groups[title]) for title in titles]


def _write_lists(command: Any, context: Any, formatter: Any) -> None:
    for title, params in list_params(command, context):
        with formatter.section(title):
            formatter.write_dl([(told.written, told.text) for told in params])


def _name_panel(param: Any) -> str:
    """The title that a parameter is listed under."""
    if param.param_type_name == "argument":
        return _ARGUMENTS
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
