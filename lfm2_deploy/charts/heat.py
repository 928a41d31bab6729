"""A table of shaded cells, as SVG that is as wide as its place."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from lfm2_deploy.charts.environment import find_environment

ROW_HEIGHT = 24
# With more columns, a telephone has no room for what is written in cells.
_MOST_WRITTEN = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Args:
        row, column: where, from 0.
        shade: 0 to 1.
        text: a few characters in it.
        tip: shown where a mouse points at it.
    """

    row: int
    column: int
    shade: float
    text: str
    tip: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Cells in rows and columns; some may be missing.

    Args:
        title: what it shows, in a sentence; screen readers say it.
        rows, columns: their names.
        label: what columns are.
        cells: in any order.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    label: str
    cells: tuple[Cell, ...]


def render_heat_map(heat: HeatMap) -> Markup:
    """The SVG element, `ROW_HEIGHT` pixels for each row."""
    template = find_environment("lfm2_deploy.charts").get_template("heat.svg.jinja")
    every = -(-len(heat.columns) // _MOST_WRITTEN)
    text = template.render(
        heat=heat,
        row_height=ROW_HEIGHT,
        width=100 / max(1, len(heat.columns)),
        every=every,
        dense=len(heat.columns) > _MOST_WRITTEN,
    )
    return Markup(text.strip())
