"""A report -> its charts, with captions that say how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from lfm2_deploy.charts import (
    Axis,
    Band,
    Chart,
    Dot,
    Guide,
    Label,
    Line,
    linear_axis,
    log_axis,
)
from lfm2_deploy.charts.axes import step_axis
from lfm2_deploy.charts.chart import Shape
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.report.table import format_bytes
from lfm2_deploy.compare.result import PERCENTS, Divergence, Report, StateErrors, SubjectResult

# Less is rounding, whatever the subject; it would stretch the axis for nothing.
_LEAST_KLD = 1e-7
_MOST_POINTS = 64
_SHAPES: dict[str, Shape] = {"conv": "circle", "key": "square", "value": "diamond"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading, what to look for in it, and (series, name) of its legend."""

    heading: str
    caption: str
    chart: Chart
    legend: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """One subject's KL divergences on the axis all share; places are 0 to 1."""

    number: int
    name: str
    mean: float
    median: float
    p99: float
    most: float
    tip: str


@dataclass(frozen=True, slots=True)
class Strips:
    """The KL divergences of all subjects; `limit` is where the limit lies."""

    axis: Axis
    strips: tuple[Strip, ...]
    limit: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; `share` is its length of the longest, 0 to 1."""

    number: int
    name: str
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one figure of speed or memory."""

    heading: str
    better: str
    bars: tuple[Bar, ...]


def plot_strips(report: Report) -> Strips | None:
    """Mean, median, 99 % and largest of each subject; None where nothing was scored."""
    scored = [*_list_divergences(report)]
    if not scored:
        return None
    limit = report.verdict.most_kld
    values = [v for _, _, d in scored for v in (d.median, d.mean.value, d.p99, d.most)]
    axis = log_axis("nats", _floor(values + ([limit] if limit else [])))
    return Strips(
        axis,
        tuple(
            Strip(
                number,
                name,
                *(axis.place(v) for v in (d.mean.value, d.median, d.p99, d.most)),
                tip=f"{name}: mean {format_number(d.mean.value)}, median "
                f"{format_number(d.median)}, 99 % {format_number(d.p99)}, "
                f"largest {format_number(d.most)}",
            )
            for number, name, d in scored
        ),
        axis.place(limit) if limit else None,
    )


def plot_scores(report: Report) -> list[Figure]:
    """The charts of KL divergence; those with nothing to show are left out."""
    scored = [*_list_divergences(report)]
    if not scored:
        return []
    figures = [_plot_survival(scored), _plot_positions(report, scored)]
    if report.protocol.windows > 1:
        figures.append(_plot_windows(scored))
    sizes = _plot_sizes(report)
    return figures + ([sizes] if sizes else [])


def _list_divergences(report: Report) -> Iterator[tuple[int, str, Divergence]]:
    for number, subject in enumerate(report.subjects):
        if subject.scores is not None:
            yield number, subject.info.name, subject.scores.divergence


def _floor(values: Sequence[float]) -> list[float]:
    return [max(value, _LEAST_KLD) for value in values]


_Scored = Sequence[tuple[int, str, Divergence]]


def _name_all(scored: _Scored) -> tuple[tuple[int, str], ...]:
    return tuple((number, name) for number, name, _ in scored)


def _plot_survival(scored: _Scored) -> Figure:
    lines = tuple(Line(name, number, _survive(d)) for number, name, d in scored)
    # The nearest twentieth of the positions would take half of the axis and says nothing.
    shown = [kld for line in lines for kld, share in line.points if share <= 0.95]
    x = log_axis("KL divergence, nats", _floor(shown))
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
    body = [(max(value, _LEAST_KLD), 1 - percent / PERCENTS) for value, percent in steps]
    return (*body, (max(divergence.p999, _LEAST_KLD), 1e-3))


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
    return log_axis("mean KL divergence, nats", _floor([y for li in lines for _, y in li.points]))


def _bin(values: Sequence[float], first: int) -> tuple[tuple[float, float], ...]:
    """(place, mean) of at most `_MOST_POINTS` runs of neighbours."""
    count = min(len(values), _MOST_POINTS)
    edges = [i * len(values) // count for i in range(count + 1)] if count else []
    return tuple(
        (first + (start + end - 1) / 2, max(fmean(values[start:end]), _LEAST_KLD))
        for start, end in pairwise(edges)
    )


def _plot_sizes(report: Report) -> Figure | None:
    """Size against KL divergence; None where fewer than two subjects have both."""
    dots, labels = [], []
    for number, name, divergence in _list_divergences(report):
        size, kld = report.subjects[number].info.size_bytes, divergence.mean.value
        if size is not None:
            megabytes, kld = size / 1e6, max(kld, _LEAST_KLD)
            tip = f"{name}: {format_bytes(size)}, {format_number(kld)} nats"
            dots.append(Dot(number, megabytes, kld, tip))
            labels.append(Label(number, megabytes, kld, name))
    if len(dots) < 2:
        return None
    x = linear_axis("size on disk, MB", [dot.x for dot in dots], most_ticks=5)
    limit = report.verdict.most_kld
    values = [dot.y for dot in dots] + ([limit] if limit else [])
    y = log_axis("mean KL divergence, nats", _floor(values))
    guides = (Guide("y", limit, "limit"),) if limit else ()
    chart = Chart(
        "Size against KL divergence", x, y, (), tuple(dots), guides, (), tuple(labels)
    )
    caption = "Down and to the left is better: a smaller bundle that is nearer to the reference."
    return Figure("What the size buys", caption, chart, ())


def plot_states(report: Report) -> list[Figure]:
    """A chart of the states' errors for each row of tokens that was read."""
    counts = sorted(
        {row.tokens for s in report.subjects if s.states for row in s.states.rows}
    )
    every = [
        error.error
        for subject in report.subjects
        if subject.states
        for row in subject.states.rows
        for error in row.errors
    ]
    y = log_axis("relative error", _floor(every))
    return [_plot_state_row(report, tokens, y) for tokens in counts]


def _plot_state_row(report: Report, tokens: int, y: Axis) -> Figure:
    layers = report.layer_types
    lines: list[Line] = []
    dots: list[Dot] = []
    for number, subject in enumerate(report.subjects):
        if subject.states is not None:
            line, marks = _trace_states(number, subject, subject.states, tokens)
            lines += line
            dots += marks
    bands = [Band(i - 0.5, i + 0.5) for i, kind in enumerate(layers) if kind != "conv"]
    x = step_axis("layer", [str(i) for i in range(len(layers))], most_ticks=8)
    chart = Chart(
        f"Relative error of states by layer after {tokens} tokens",
        x,
        y,
        tuple(lines),
        tuple(dots),
        (),
        tuple(bands),
    )
    legend = tuple((line.series, line.name) for line in lines)
    return Figure(f"After {tokens:,} token{'s' * (tokens != 1)}", "", chart, legend)


def _trace_states(
    number: int, subject: SubjectResult, states: StateErrors, tokens: int
) -> tuple[list[Line], list[Dot]]:
    """The worst state of each layer as a line, every state as a mark, the start as a ring."""
    errors = [error for row in states.rows if row.tokens == tokens for error in row.errors]
    if not errors:
        return [], []
    name, worst = subject.info.name, dict[int, float]()
    dots: list[Dot] = []
    for error in errors:
        value = max(error.error, _LEAST_KLD)
        worst[error.layer] = max(value, worst.get(error.layer, 0.0))
        tip = f"{name}, layer {error.layer}, {error.kind}: {format_number(error.error)}"
        dots.append(Dot(number, error.layer, value, tip, _SHAPES[error.kind]))
    if states.start and states.start.layer in worst:
        layer = states.start.layer
        dots.append(Dot(number, layer, worst[layer], f"{name}: the error starts here", "ring"))
    points = tuple((float(layer), value) for layer, value in sorted(worst.items()))
    return [Line(name, number, points)], dots


def list_panels(report: Report) -> list[Panel]:
    """Speed, memory and size as bars."""
    panels = [_make_panel(report, *rule) for rule in _PANELS]
    return [panel for panel in panels if panel.bars]


def _make_panel(
    report: Report,
    heading: str,
    better: str,
    pick: Callable[[SubjectResult], float | None],
    write: Callable[[float], str],
) -> Panel:
    found = [
        (number, subject.info.name, value)
        for number, subject in enumerate(report.subjects)
        if (value := pick(subject)) is not None
    ]
    longest = max((value for _, _, value in found), default=0) or 1.0
    bars = tuple(Bar(n, name, value / longest, write(value)) for n, name, value in found)
    return Panel(heading, better, bars)


def _write_rate(value: float) -> str:
    return f"{format_number(value)} tok/s"


_PANELS: tuple[
    tuple[str, str, Callable[[SubjectResult], float | None], Callable[[float], str]], ...
] = (
    ("Decode", "longer is better", lambda s: s.cost and s.cost.decode, _write_rate),
    ("Prefill", "longer is better", lambda s: s.cost and s.cost.prefill, _write_rate),
    (
        "Peak memory",
        "shorter is better",
        lambda s: s.cost and s.cost.peak_bytes,
        lambda value: format_bytes(int(value)),
    ),
    (
        "Size on disk",
        "shorter is better",
        lambda s: s.info.size_bytes,
        lambda value: format_bytes(int(value)),
    ),
)
