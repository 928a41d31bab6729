"""Lines of a name, a word in colour and a sentence, which wraps under itself on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from lfm2_deploy.commands.console import output, printable, wrap


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Args:
        name: what it is about.
        status: one or two words.
        style: rich's, of the status.
        text: the sentence.
    """

    name: str
    status: str
    style: str
    text: str


def print_lines(lines: Sequence[Line], console: Console | None = None) -> None:
    """Write lines with their columns aligned.

    Args:
        lines: at least one.
        console: stdout's when None.
    """
    console = console or output()
    names = max(len(line.name) for line in lines)
    words = max(len(line.status) for line in lines)
    indent = 2 + names + 2 + words + 2
    for line in lines:
        first, *rest = wrap(printable(line.text), console, indent)
        status = (f"{line.status:<{words}}  ", line.style)
        head = Text.assemble((f"  {line.name:<{names}}  ", "dim"), status, first)
        head.rstrip()
        console.print(head, soft_wrap=True)
        for more in rest:
            console.print(Text(" " * indent + more), soft_wrap=True)
