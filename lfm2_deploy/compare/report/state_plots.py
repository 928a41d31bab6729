"""A report -> charts of errors by layer: of states as measured, of rounding as recorded."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan

from lfm2_deploy.charts import Axis, Band, Chart, Dot, Line, error_axis, log_axis, step_axis
from lfm2_deploy.charts.chart import Shape
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.report.plots import Figure
from lfm2_deploy.compare.result import Report, StateErrors, SubjectResult

# Less is the order in which float32 sums are taken.
_LEAST_ERROR = 1e-7
_SHAPES: Mapping[str, Shape] = {"conv": "circle", "key": "square", "value": "diamond"}


def plot_states(report: Report) -> list[Figure]:
    """A chart of the states' errors for each row of tokens that was read."""
    counts = sorted({row.tokens for s in report.subjects if s.states for row in s.states.rows})
    every = [
        error.error
        for subject in report.subjects
        if subject.states
        for row in subject.states.rows
        for error in row.errors
    ]
    y = log_axis("relative error", every, least=_LEAST_ERROR)
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
        value = inf if isnan(error.error) else error.error
        worst[error.layer] = max(value, worst.get(error.layer, 0.0))
        tip = f"{name}, layer {error.layer}, {error.kind}: {format_number(error.error)}"
        dots.append(Dot(number, error.layer, value, tip, _SHAPES[error.kind]))
    if states.start and states.start.layer in worst:
        layer = states.start.layer
        dots.append(Dot(number, layer, worst[layer], f"{name}: the error starts here", "ring"))
    points = tuple((float(layer), value) for layer, value in sorted(worst.items()))
    return [Line(name, number, points)], dots


def plot_rounding(report: Report) -> Figure | None:
    """What each exporter measured of its layers on a text; None where none did."""
    lines = tuple(
        Line(subject.info.name, number, points)
        for number, subject in enumerate(report.subjects)
        if (points := tuple((float(e.layer), e.error) for e in subject.rounding))
    )
    if not lines:
        return None
    dots = tuple(
        Dot(li.series, x, y, f"{li.name}, layer {x:.0f}: {format_number(y, 2)}")
        for li in lines
        for x, y in li.points
    )
    y = error_axis("relative error", [value for line in lines for _, value in line.points])
    names = [str(layer) for layer in range(len(report.layer_types))]
    chart = Chart("Error of rounding by layer", step_axis("layer", names), y, lines, dots)
    caption = (
        "What rounding the weights does to the output of each layer, as the exporter measured it "
        "in float32 on its calibration text, with all layers before it rounded too. States much "
        "further off than this have another cause: arithmetic in fewer bits, or a fault. Texts "
        "differ, and a short one looks best."
    )
    others = [s.info.name for s in report.subjects if s.rounded_without_text]
    if others:
        caption += (
            f" Not drawn: {', '.join(others)}, rounded without a text, so that only the error of "
            "the weights is known (`inspect` shows it), which is not this one."
        )
    legend = tuple((line.series, line.name) for line in lines)
    return Figure("What rounding alone explains", caption, chart, legend)
