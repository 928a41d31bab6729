"""Command lines that people read, parsed as their command would and not run."""

from __future__ import annotations

import re
import shlex
from typing import Any

from typer.main import get_command

from lfm2_deploy.cli import app
from lfm2_deploy.commands.failures import PROGRAM

GROUP: Any = get_command(app)


def parse(line: str) -> Any:
    """What a command would get of a line of a shell, up to the point where it would run."""
    stages = [shlex.split(part) for part in re.split(r"\s\|\s", line)]
    words = next(stage for stage in stages if stage[0] == PROGRAM)
    if words[1].startswith("-"):
        return GROUP.make_context(PROGRAM, words[1:]).params
    name, *rest = words[1:]
    with GROUP.make_context(PROGRAM, [name, *rest]) as context:
        command = GROUP.commands[name]
        return command.make_context(name, rest, parent=context).params
