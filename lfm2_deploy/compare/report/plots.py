"""A report -> charts of KL divergence, with captions that say how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from lfm2_deploy.charts import (
    Axis,
    Chart,
    Dot,
    Guide,
    Line,
    linear_axis,
    log_axis,
)
from lfm2_deploy.charts.chart import Shape
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.report.values import LEAST_KLD
from lfm2_deploy.compare.result import PERCENTS, Divergence, Report
from lfm2_deploy.units import format_bytes

_MOST_POINTS = 64
_SHAPES: tuple[Shape, ...] = ("circle", "square", "diamond")


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading, what to look for in it, and (series, name) of its legend.

    The legend is of lines; where `marks` gives a shape for each entry, of dots.
    """

    heading: str
    caption: str
    chart: Chart
    legend: tuple[tuple[int, str], ...]
    marks: tuple[Shape, ...] = ()


def plot_scores(report: Report) -> list[Figure]:
    """The charts of KL divergence; those with nothing to show are left out."""
    scored = [*list_divergences(report)]
    if not scored:
        return []
    figures = [_plot_survival(scored), _plot_positions(report, scored)]
    if report.protocol.windows > 1:
        figures.append(_plot_windows(scored))
    sizes = _plot_sizes(report)
    return figures + ([sizes] if sizes else [])


def list_divergences(report: Report) -> Iterator[tuple[int, str, Divergence]]:
    """(number, name, KL divergence) of each subject that was scored."""
    for number, subject in enumerate(report.subjects):
        if subject.scores is not None:
            yield number, subject.info.name, subject.scores.divergence


_Scored = Sequence[tuple[int, str, Divergence]]


def _name_all(scored: _Scored) -> tuple[tuple[int, str], ...]:
    return tuple((number, name) for number, name, _ in scored)


def _plot_survival(scored: _Scored) -> Figure:
    lines = tuple(Line(name, number, _survive(d)) for number, name, d in scored)
    # The nearest twentieth of the positions would take half of the axis and says nothing.
    shown = [kld for line in lines for kld, share in line.points if share <= 0.95]
    x = log_axis("KL divergence, nats", shown, least=LEAST_KLD)
    y = log_axis("share of positions above", [1e-3, 1], most_ticks=4)
    return Figure(
        "How the divergence is spread",
        "Of all positions, the share with a larger KL divergence than the value below. Further "
        "left is better. A line that falls steeply is the same small error everywhere; a long "
        "tail to the right is a few positions that went wrong.",
        Chart("Share of positions above each KL divergence", x, y, lines),
        _name_all(scored),
    )


def _survive(divergence: Divergence) -> tuple[tuple[float, float], ...]:
    """(KL divergence, share of positions above it), from all positions to one in a thousand."""
    steps = zip(divergence.percentiles[:PERCENTS], range(PERCENTS), strict=True)
    body = [(value, 1 - percent / PERCENTS) for value, percent in steps]
    return (*body, (divergence.p999, 1e-3))


def _plot_positions(report: Report, scored: _Scored) -> Figure:
    first = report.protocol.first
    lines = tuple(Line(n, k, _bin(d.by_position, first)) for k, n, d in scored)
    last = first + max(len(d.by_position) for _, _, d in scored)
    x = linear_axis("position", [first, last - 1], tight=True)
    return Figure(
        "By position in the window",
        "The mean over all windows. Flat is good. A rise to the right is an error that builds up "
        "in states: a wrong mask, a cache row that was overwritten, sums in too few bits.",
        Chart("KL divergence by position in the window", x, _make_kld_axis(lines), lines),
        _name_all(scored),
    )


def _plot_windows(scored: _Scored) -> Figure:
    lines = tuple(Line(n, k, _bin(d.by_window, 0)) for k, n, d in scored)
    x = linear_axis("window", [0, max(len(d.by_window) for _, _, d in scored) - 1], tight=True)
    return Figure(
        "By window of the text",
        "The mean of each window, in the order of the text. Lines that rise and fall together "
        "show which text is hard; one that jumps alone shows where that subject went wrong.",
        Chart("KL divergence by window", x, _make_kld_axis(lines), lines),
        _name_all(scored),
    )


def _make_kld_axis(lines: Sequence[Line]) -> Axis:
    return log_axis(
        "mean KL divergence, nats", [y for line in lines for _, y in line.points], least=LEAST_KLD
    )


def _bin(values: Sequence[float], first: int) -> tuple[tuple[float, float], ...]:
    """(place, mean) of at most `_MOST_POINTS` runs of neighbours."""
    count = min(len(values), _MOST_POINTS)
    edges = [i * len(values) // count for i in range(count + 1)] if count else []
    return tuple(
        (first + (start + end - 1) / 2, fmean(values[start:end])) for start, end in pairwise(edges)
    )


def _plot_sizes(report: Report) -> Figure | None:
    """Size against KL divergence; None where fewer than two subjects have both."""
    dots, legend = [], []
    for number, name, divergence in list_divergences(report):
        size, kld = report.subjects[number].info.size_bytes, divergence.mean.value
        if size is not None:
            words = f"{name}: {format_bytes(size)}, {format_number(kld)} nats"
            # Of another shape: dots that lie upon each other are all seen.
            dots.append(Dot(number, size / 1e6, kld, words, _SHAPES[number % len(_SHAPES)]))
            # Names stand in a legend: beside a dot there is no room for a long one on a telephone.
            legend.append((number, words))
    if len(dots) < 2:
        return None
    x = linear_axis("size on disk, MB", [dot.x for dot in dots], most_ticks=5)
    limit = report.verdict.most_kld
    values = [dot.y for dot in dots] + ([limit] if limit else [])
    y = log_axis("mean KL divergence, nats", values, least=LEAST_KLD)
    guides = (Guide("y", limit, "limit"),) if limit else ()
    chart = Chart("Size against KL divergence", x, y, (), tuple(dots), guides)
    caption = "Down and to the left is better: a smaller bundle that is nearer to the reference."
    shapes = tuple(dot.shape for dot in dots)
    return Figure("What the size buys", caption, chart, tuple(legend), shapes)
