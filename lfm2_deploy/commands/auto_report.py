"""What `--target auto` considered, as a short table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from lfm2_deploy.commands.columns import Line, print_lines

if TYPE_CHECKING:
    from lfm2_deploy.auto import Candidate

_STYLES = {"chosen": "green", "passed over": "yellow", "not needed": "dim"}


def print_choice(candidates: Sequence[Candidate], console: Console | None = None) -> None:
    """Write each candidate with what came of it and why."""
    print_lines([_make_line(found) for found in candidates], console)


def _make_line(found: Candidate) -> Line:
    reason = ": ".join(part for part in (found.device, found.reason) if part)
    return Line(found.target, found.outcome, _STYLES[found.outcome], reason)
