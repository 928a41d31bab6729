"""A `Chart` -> SVG that is as wide as its place, or a file that stands alone.

All marks lie at percentages, so a chart stretches without its letters stretching. Only lines
need a coordinate system; theirs is an inner `svg` that is stretched, with pens that are not.
Colours are classes `s0` to `s7`; the style sheet says what they are in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from lfm2_deploy.charts.axes import Axis
from lfm2_deploy.charts.chart import Chart, Line
from lfm2_deploy.charts.environment import find_environment

# Colours there are; more series begin anew.
COLOURS = 8
# Of the coordinate system of lines: enough that a step is no wider than a pixel.
_UNITS = 1000
_PACKAGE = "lfm2_deploy.charts"
# Of a file, in pixels.
_FIRST_PANEL, _LINE_HEIGHT, _AROUND_PANEL = 78, 19, 124


def render_chart(chart: Chart, height: int = 240) -> Markup:
    """The SVG element of a chart for a page, `height` CSS pixels high."""
    template = find_environment(_PACKAGE).get_template("chart.svg.jinja")
    text = template.render(
        chart=chart,
        height=height,
        x=lambda value: _percent(chart.x, value),
        y=lambda value: _percent(chart.y, value, from_top=True),
        percent=lambda at: f"{round(100 * at, 2):g}%",
        colour=lambda series: f"s{series % COLOURS}",
        pieces=lambda line: [*_cut(chart, line)],
    )
    return Markup(text.strip())


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart in a file of its own.

    Args:
        heading: what it shows.
        legend: (series, name).
        drawing: its SVG element.
        height: of that, in pixels.
    """

    heading: str
    legend: tuple[tuple[int, str], ...]
    drawing: Markup
    height: int


def write_panels(title: str, remarks: Sequence[str], panels: Sequence[Panel], file: Path) -> None:
    """Write charts under each other as an SVG file, which follows a viewer's dark mode.

    Args:
        title: over all of them.
        remarks: lines under the title.
        panels: from above.
        file: where to; an existing file is replaced.

    Raises:
        OSError: it cannot be written.
    """
    tops, top = [], _FIRST_PANEL + _LINE_HEIGHT * len(remarks)
    for panel in panels:
        tops.append(top)
        top += panel.height + _AROUND_PANEL
    text = (
        find_environment(_PACKAGE)
        .get_template("file.svg.jinja")
        .render(
            title=title,
            remarks=remarks,
            panels=list(zip(tops, panels, strict=True)),
            height=top,
            line_height=_LINE_HEIGHT,
            colour=lambda series: f"s{series % COLOURS}",
        )
    )
    file.write_text(text, encoding="utf-8", newline="\n")


def _percent(axis: Axis, value: float, from_top: bool = False) -> str:
    place = axis.place(value)
    return f"{round(100 * (1 - place if from_top else place), 2):g}%"


def _cut(chart: Chart, line: Line) -> Iterator[str]:
    """The points of each unbroken piece of a line, as SVG has them."""
    piece: list[str] = []
    for x, y in (*line.points, (math.nan, math.nan)):
        if math.isfinite(x) and math.isfinite(y):
            left, top = _UNITS * chart.x.place(x), _UNITS * (1 - chart.y.place(y))
            piece.append(f"{left:.0f},{top:.0f}")
        elif piece:
            yield " ".join(piece)
            piece = []
