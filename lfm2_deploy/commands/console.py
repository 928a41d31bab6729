"""What all commands share: where their output goes, and how it looks.

Results go to stdout, everything else to stderr. Nothing here reads `[brackets]` as
markup, so messages and model output are shown as they are.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it imports numpy, which `--help` must not wait for
    from lfm2_deploy.contracts import Progress

# Where there is no terminal to measure, lines are not broken early.
_PLAIN_WIDTH = 160
# During a download the screen belongs to huggingface_hub's own bars.
_DOWNLOAD = "download"
_CONTROLS = {c: "\N{REPLACEMENT CHARACTER}" for c in (*range(32), *range(127, 160))}
_CONTROLS = {code: mark for code, mark in _CONTROLS.items() if chr(code) not in "\n\t"}


def output() -> Console:
    """The console of results, on stdout."""
    return _make_console(to_stderr=False)


def notes() -> Console:
    """The console of progress, notes and errors, on stderr."""
    return _make_console(to_stderr=True)


def _make_console(to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(stderr=to_stderr, width=width, markup=False, highlight=False, emoji=False)


def note(text: str) -> None:
    """Say something that is not part of the result."""
    notes().print(printable(text), style="dim", soft_wrap=True)


def printable(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or worse."""
    return text.translate(_CONTROLS)


def write_text(text: str) -> None:
    """Write a model's text at once; on a terminal, without control characters."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(record: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout; numbers that JSON does not know become null."""
    sys.stdout.write(json.dumps(_without_nan(record), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_title(title: str, remark: str = "") -> None:
    """Write a heading of a result."""
    output().print(Text.assemble((title, "bold"), (f"  {remark}" if remark else "", "dim")))


def print_facts(facts: Mapping[str, str | Text]) -> None:
    """Write what is known, one labelled line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts.items():
        grid.add_row(f"  {label}", value)
    output().print(grid)


def make_table(*columns: str) -> Table:
    """A table without lines; a name that begins with ">" is a column of numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        numeric = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if numeric else "left", overflow="fold"
        )
    return table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under their headings, indented as facts are."""
    table = make_table("", *columns)
    for row in rows:
        table.add_row("", *row)
    output().print(table)


def format_bytes(size: int) -> str:
    """1536 -> "1.5 kB"; units are powers of 1000."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def format_count(count: int) -> str:
    """1234567 -> "1.23 M"; below ten thousand, every digit."""
    if count < 10_000:
        return f"{count:,}"
    value, unit = (count / 1e9, "B") if count >= 999.5e6 else (count / 1e6, "M")
    return f"{value:.3g} {unit}"


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A `Progress` to hand on: a bar on stderr, or a line a stage where it is no terminal."""
    console = notes()
    if not console.is_terminal:
        yield _Lines()
        return
    bar = rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        yield _Bar(bar)


def name_stage(what: str) -> str:
    """The stage a progress message belongs to: what is done, without the file or model."""
    first, _, last = what.rpartition(" ")
    return first if first and ("." in last or "/" in last) else what


class _Lines:
    """One line when a stage begins, for logs."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        stage = name_stage(what)
        finished = 0 < total <= done
        if stage not in self._seen and not finished:
            note(f"{stage} ...")
        self._seen.add(stage)


class _Bar:
    """One bar, begun anew at each stage."""

    def __init__(self, bar: rich_progress.Progress) -> None:
        self._bar = bar
        self._stage = ""
        self._task: rich_progress.TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if what.startswith(_DOWNLOAD):
            self._give_way(what, ended=0 < total <= done)
            return
        if name_stage(what) != self._stage or self._task is None:
            self._begin(name_stage(what))
        assert self._task is not None
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def _begin(self, stage: str) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._stage = stage
        self._task = self._bar.add_task(stage, total=None)

    def _give_way(self, what: str, ended: bool) -> None:
        if ended:
            self._bar.start()
        else:
            self._bar.stop()
            note(f"{what} ...")
