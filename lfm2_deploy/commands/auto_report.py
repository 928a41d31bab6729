"""What `--target auto` considered, as a short table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lfm2_deploy.commands.console import printable

if TYPE_CHECKING:
    from lfm2_deploy.auto import Candidate

_STYLES = {"chosen": "green", "passed over": "yellow", "not needed": "dim"}
# Narrower, a column of single words would be left.
_LEAST_WIDTH = 30


def print_choice(candidates: Sequence[Candidate], console: Console) -> None:
    """Write each candidate with what came of it and why, wrapped to the console's width."""
    names = max(len(found.target) for found in candidates)
    outcomes = max(len(found.outcome) for found in candidates)
    indent = 2 + names + 2 + outcomes + 2
    width = max(console.width - indent - 1, _LEAST_WIDTH)
    for found in candidates:
        reason = ": ".join(part for part in (found.device, found.reason) if part)
        lines = textwrap.wrap(printable(reason), width, break_on_hyphens=False) or [""]
        outcome = (f"{found.outcome:<{outcomes}}  ", _STYLES[found.outcome])
        console.print(Text.assemble(f"  {found.target:<{names}}  ", outcome, lines[0]))
        for line in lines[1:]:
            console.print(Text(" " * indent + line))
