"""What a chart shows, in the units of its axes. Nothing here knows how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.charts.axes import Axis

Shape = Literal["circle", "square", "diamond", "ring"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line; a point that is not finite leaves a gap.

    Args:
        name: for the legend.
        series: number of its colour.
        points: (x, y), in the axes' units.
    """

    name: str
    series: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """A mark; `tip` is shown where a mouse points at it."""

    series: int
    x: float
    y: float
    tip: str
    shape: Shape = "circle"


@dataclass(frozen=True, slots=True)
class Guide:
    """A thin line across the chart at one value of an axis, with its name."""

    axis: Literal["x", "y"]
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the x axis that is shaded."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Args:
        title: what it shows, in a sentence; screen readers say it.
        x: the axis below.
        y: the axis at the left.
        lines: in the order they are drawn.
        dots: drawn over the lines.
        guides: drawn under them.
        bands: drawn under all.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    guides: tuple[Guide, ...] = ()
    bands: tuple[Band, ...] = ()
