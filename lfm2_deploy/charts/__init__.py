"""Small charts as SVG, drawn by templates: they follow a page's width and its dark mode.

matplotlib's SVG has fixed colours and a fixed width, weighs ten
times as much, and is an extra. These need jinja2 alone, which chat templates need anyway.
"""

from lfm2_deploy.charts.axes import Axis, Tick, error_axis, linear_axis, log_axis, step_axis
from lfm2_deploy.charts.chart import Band, Chart, Dot, Guide, Line
from lfm2_deploy.charts.svg import Panel, render_chart, write_panels

__all__ = [
    "Axis",
    "Band",
    "Chart",
    "Dot",
    "Guide",
    "Line",
    "Panel",
    "Tick",
    "error_axis",
    "linear_axis",
    "log_axis",
    "render_chart",
    "step_axis",
    "write_panels",
]
