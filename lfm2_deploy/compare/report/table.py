"""The table of a report: a column for each figure that any subject has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lfm2_deploy.charts.numbers import UNKNOWN, format_number, format_share
from lfm2_deploy.compare.report.values import write_error, write_value
from lfm2_deploy.compare.result import Estimate, Report, Scores, SubjectResult
from lfm2_deploy.units import format_bytes


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure: as people read it, its standard error or "", and as a script sorts it."""

    text: str
    number: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of every subject, in their order."""

    name: str
    hint: str
    cells: tuple[Cell, ...]


def list_columns(report: Report) -> list[Column]:
    """The columns of which at least one cell is known."""
    made = [
        Column(name, hint, tuple(make(subject) for subject in report.subjects))
        for name, hint, make in _COLUMNS
    ]
    return [column for column in made if any(cell.text != UNKNOWN for cell in column.cells)]


def _score(pick: Callable[[Scores], Estimate | float]) -> Callable[[SubjectResult], Cell]:
    def make(subject: SubjectResult) -> Cell:
        if subject.scores is None:
            return Cell(UNKNOWN, None)
        value = pick(subject.scores)
        if isinstance(value, Estimate):
            return Cell(write_value(value), value.value, write_error(value))
        return Cell(format_number(value), value)

    return make


def _share(pick: Callable[[Scores], Estimate]) -> Callable[[SubjectResult], Cell]:
    def make(subject: SubjectResult) -> Cell:
        if subject.scores is None:
            return Cell(UNKNOWN, None)
        share = pick(subject.scores)
        error = f"± {100 * share.error:.2f}" if math.isfinite(share.error) else ""
        return Cell(format_share(share.value), share.value, error)

    return make


def _one_by_one(subject: SubjectResult) -> Cell:
    if subject.decoding is None:
        return Cell(UNKNOWN, None)
    value = subject.decoding.divergence
    return Cell(write_value(value), value.value, write_error(value))


def _size(subject: SubjectResult) -> Cell:
    size = subject.info.size_bytes
    return Cell(UNKNOWN if size is None else format_bytes(size), size)


_COLUMNS: tuple[tuple[str, str, Callable[[SubjectResult], Cell]], ...] = (
    (
        "KL divergence",
        "mean ± standard error, nats; 0 is exact",
        _score(lambda s: s.divergence.mean),
    ),
    ("median", "KL divergence, nats", _score(lambda s: s.divergence.median)),
    ("99 %", "99 % of positions are below, nats", _score(lambda s: s.divergence.p99)),
    ("largest", "KL divergence, nats", _score(lambda s: s.divergence.most)),
    (
        "one by one",
        "KL divergence of a few positions read token by token, nats",
        _one_by_one,
    ),
    ("same top", "positions with the same likeliest token", _share(lambda s: s.same_top)),
    ("top-5 overlap", "of the five likeliest tokens", _share(lambda s: s.top5_overlap)),
    ("perplexity", "of the text", _score(lambda s: s.perplexity)),
    ("ratio", "of perplexity to the reference's", _score(lambda s: s.perplexity_ratio)),
    ("size", "on disk", _size),
)
