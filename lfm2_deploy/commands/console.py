"""What all commands share: where their output goes, and how it looks.

Results go to stdout, everything else to stderr. Nothing here reads `[brackets]` as
markup, so messages and model output are shown as they are.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress as rich_progress
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lfm2_deploy.units import format_bytes as format_bytes
from lfm2_deploy.words import quote_path

if TYPE_CHECKING:  # it imports numpy, which `--help` must not wait for
    from lfm2_deploy.contracts import Progress

# Where there is no terminal to measure, lines are not broken early.
_PLAIN_WIDTH = 160
# Narrower, a column of single words would be left.
_LEAST_WIDTH = 30
# During a download or upload the screen belongs to huggingface_hub's own bars.
_DOWNLOAD = ("download", "upload")
# Steps on a large model are far apart, so their speed is taken over a long time.
_SPEED_SECONDS = 300.0
# Stages whose progress is counted in bytes.
_IN_BYTES = {"writing weights", "hashing", "checking"}
# Where there is no terminal, a long stage tells how far it is this often.
_SECONDS_BETWEEN_LINES = 30.0
# Stages too common to be worth a line in a log.
_UNTOLD = {"starting", "loading"}
_SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_CONTROLS = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)


def output() -> Console:
    """The console of results, on stdout."""
    return _make_console(to_stderr=False)


def notes() -> Console:
    """The console of progress, notes and errors, on stderr."""
    return _make_console(to_stderr=True)


def _make_console(to_stderr: bool) -> Console:
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    return _Console(stderr=to_stderr, width=width, markup=False, highlight=False, emoji=False)


class _Console(Console):
    """A console that leaves it to `failures` to notice that nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


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
    width, console = max(map(len, facts)), output()
    indent = width + 4
    for label, value in facts.items():
        # One in colours is short.
        first, *rest = [value] if isinstance(value, Text) else wrap(value, console, indent)
        console.print(Text.assemble((f"  {label:<{width}}  ", "dim"), first), soft_wrap=True)
        for more in rest:
            console.print(Text.assemble(" " * indent, more), soft_wrap=True)


def print_remark(text: str) -> None:
    """Write what explains a result, as a part of it."""
    for line in wrap(printable(text), output(), 2):
        output().print(Text(f"  {line}", style="dim"), soft_wrap=True)


def wrap(text: str, console: Console, indent: int) -> list[str]:
    """Lines that fit a terminal; where there is none, one line, for programs to search."""
    width = max(console.width - indent, _LEAST_WIDTH)
    if not console.is_terminal or len(text) <= width:
        return [text]
    # A command that is to be pasted must not be broken inside a word.
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """Write rows under their headings, without lines or trailing spaces.

    A last column of words is broken where a terminal is too narrow for it.

    Args:
        columns: headings; one that begins with ">" is of numbers, aligned right.
        rows: as many cells each.
        console: stdout's when None.
    """
    console = console or output()
    headings = [name.removeprefix(">") for name in columns]
    widths = [max(map(cell_len, cells)) for cells in zip(headings, *rows, strict=True)]
    for number, cells in enumerate([headings, *rows]):
        style = "dim" if number == 0 else ""
        for line in _break_last(cells, widths, columns[-1], console):
            parts = [
                _pad(cell, width, right=name.startswith(">"))
                for cell, width, name in zip(line, widths, columns, strict=True)
            ]
            console.print(Text(f"  {'  '.join(parts).rstrip()}", style=style), soft_wrap=True)


def _break_last(
    cells: Sequence[str], widths: Sequence[int], heading: str, console: Console
) -> list[tuple[str, ...]]:
    """A row, as several lines where its last cell has words for more than one."""
    if heading.startswith(">"):
        return [tuple(cells)]
    first, *rest = wrap(cells[-1], console, 2 + sum(widths[:-1]) + 2 * (len(widths) - 1))
    empty = [""] * (len(cells) - 1)
    return [(*cells[:-1], first), *((*empty, more) for more in rest)]


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def format_seconds(seconds: float) -> str:
    """0.0123 -> "12.3 ms"; from a tenth of a second, in seconds."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def format_count(count: int) -> str:
    """1234567 -> "1.23 M"; below ten thousand, every digit."""
    if count < 10_000:
        return f"{count:,}"
    scale, unit = next(pair for pair in _SCALES if count >= 0.9995 * pair[0])
    return f"{count / scale:.3g} {unit}"


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
        rich_progress.TaskProgressColumn(),
        _SpeedColumn(),
        rich_progress.TimeElapsedColumn(),
        _TimeLeftColumn(),
        console=console,
        speed_estimate_period=_SPEED_SECONDS,
        transient=True,
    )
    with bar:
        yield _Bar(bar)


class _SpeedColumn(rich_progress.TransferSpeedColumn):
    """`45.3 MB/s`; nothing where something else than bytes is counted."""

    def render(self, task: rich_progress.Task) -> Text:
        if task.speed is None or name_stage(task.description) not in _IN_BYTES:
            return Text("")
        return super().render(task)


class _TimeLeftColumn(rich_progress.TimeRemainingColumn):
    """`0:01:30 left`; nothing where it is not known."""

    def render(self, task: rich_progress.Task) -> Text:
        if task.total is None or task.time_remaining is None:
            return Text("")
        return super().render(task).append(" left")


def name_stage(what: str) -> str:
    """The stage a progress message belongs to: what is done, without the file or model."""
    first, _, last = what.rpartition(" ")
    return first if first and ("." in last or "/" in last) else what


class _Lines:
    """For logs: a line when a stage begins, and now and then how far a long one is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._seen: set[str] = set()
        self._clock = clock
        self._stage = ""
        self._began = self._told = (0.0, 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        stage, now = name_stage(what), self._clock()
        finished = 0 < total <= done
        if stage not in self._seen | _UNTOLD and not finished:
            note(f"{stage} ...")
        self._seen.add(stage)
        if stage != self._stage:
            self._stage, self._began, self._told = stage, (now, done), (now, done)
        elif total and not finished and now - self._told[0] >= _SECONDS_BETWEEN_LINES:
            self._told = (now, done)
            note(self._describe(stage, now, done, total))

    def _describe(self, stage: str, now: float, done: int, total: int) -> str:
        began, before = self._began
        speed = (done - before) / (now - began)
        parts = [f"{stage}: {done / total:.0%}"]
        if stage in _IN_BYTES:
            parts.append(f"{format_bytes(int(speed))}/s")
        if speed > 0:
            parts.append(f"{(total - done) / speed:.0f} s left")
        return ", ".join(parts)


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


quote = quote_path
