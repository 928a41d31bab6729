"""A bundle's record of rounding -> charts of error and bits by layer, or an SVG file of both."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.charts.axes import error_axis, step_axis
from lfm2_deploy.charts.chart import Chart, Dot, Line
from lfm2_deploy.charts.heat import ROW_HEIGHT, Cell, HeatMap, render_heat_map
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.charts.svg import Panel, render_chart, write_panels
from lfm2_deploy.quantization_record import LayerError, QuantizationRecord, TensorError

# Shades span at least this ratio of errors, so that near ones look alike.
_LEAST_SPAN = 4.0
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)(?:\.weight)?")
_CHART_HEIGHT = 240
_HIDDEN, _OWN = 0, 1
# Of tensors, in the order of their rows.
_KINDS = ("conv", "attn", "feed_forward", "experts")


@dataclass(frozen=True, slots=True)
class RoundingPlot:
    """What is drawn of a record.

    Args:
        by_layer: the layers' outputs and their worst tensors; None where neither is recorded.
        by_tensor: each tensor of each layer; None where none is recorded.
        elsewhere: tensors of no layer, such as the embedding.
    """

    by_layer: Chart | None
    by_tensor: HeatMap | None
    elsewhere: tuple[TensorError, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    layer: int
    unit: str
    tensor: TensorError


LEGEND = ((_HIDDEN, "output of the layer, all before it rounded too"), (_OWN, "its worst tensor"))


def plot_rounding(record: QuantizationRecord) -> RoundingPlot:
    """The charts of a record.

    Args:
        record: of a manifest, so it may come from anywhere.
    """
    places = [*filter(None, map(_find_place, record.tensors))]
    inside = {id(place.tensor) for place in places}
    # By rank, since a number in a name may be anything.
    layers = sorted({p.layer for p in places} | {entry.layer for entry in record.layers})
    ranks = {layer: rank for rank, layer in enumerate(layers)}
    return RoundingPlot(
        _chart_layers(record.layers, places, ranks) if layers else None,
        _map_tensors(places, ranks) if places else None,
        tuple(tensor for tensor in record.tensors if id(tensor) not in inside),
    )


def write_rounding(record: QuantizationRecord, file: Path, title: str) -> None:
    """Write an SVG file of a record's charts.

    Args:
        record: what was measured.
        file: where to.
        title: what bundle it is.

    Raises:
        OSError: it cannot be written.
    """
    plot = plot_rounding(record)
    panels = []
    if plot.by_layer:
        chart = render_chart(plot.by_layer, _CHART_HEIGHT)
        panels.append(Panel("Error by layer", LEGEND, chart, _CHART_HEIGHT))
    if plot.by_tensor:
        height = ROW_HEIGHT * len(plot.by_tensor.rows)
        heading = "Bits of each tensor, stronger where its error is larger"
        panels.append(Panel(heading, (), render_heat_map(plot.by_tensor), height))
    write_panels(title, list_remarks(record, plot), panels, file)


def list_remarks(record: QuantizationRecord, plot: RoundingPlot) -> list[str]:
    """How weights were rounded, in a line or two."""
    how = f"method {record.method}"
    if record.tokens:
        how += f", calibrated on {record.tokens:,} tokens of {record.text}"
    others = [
        f"{tensor.name}: {tensor.bits} bits, error {format_number(tensor.error, 2)}"
        for tensor in plot.elsewhere
    ]
    return [how, *others]


def _find_place(tensor: TensorError) -> _Place | None:
    match = _LAYER.fullmatch(tensor.name)
    # Longer numbers are no layers, and take forever to read.
    if match is None or len(match[1]) > 6:
        return None
    unit = match[2].replace("feed_forward.experts.*.", "experts.*.").replace("self_attn.", "attn.")
    return _Place(int(match[1]), unit, tensor)


def _chart_layers(
    outputs: Sequence[LayerError], places: Sequence[_Place], ranks: dict[int, int]
) -> Chart:
    hidden = [(ranks[entry.layer], entry.error, _tell_layer(entry)) for entry in outputs]
    worst: dict[int, _Place] = {}
    for place in places:
        other = worst.get(place.layer)
        if other is None or place.tensor.error > other.tensor.error:
            worst[place.layer] = place
    own = [(ranks[n], p.tensor.error, _tell_tensor(p)) for n, p in sorted(worst.items())]
    series = [(_HIDDEN, hidden), (_OWN, own)]
    y = error_axis("relative error", [error for _, points in series for _, error, _ in points])
    names = [str(layer) for layer in ranks]
    return Chart(
        "Relative error of rounding by layer",
        step_axis("layer", names),
        y,
        tuple(
            Line(LEGEND[number][1], number, tuple((float(x), error) for x, error, _ in points))
            for number, points in series
        ),
        tuple(Dot(number, x, error, tip) for number, points in series for x, error, tip in points),
    )


def _tell_layer(entry: LayerError) -> str:
    text = f"layer {entry.layer}: {format_number(entry.error, 2)}"
    if entry.fewest_tokens or entry.median_tokens or entry.rare_experts:
        text += f"; its experts saw {entry.fewest_tokens:,} tokens and more, half of them "
        text += f"{entry.median_tokens:,}; {entry.rare_experts:,} rare"
    return text


def _tell_tensor(place: _Place) -> str:
    tensor = place.tensor
    text = f"{tensor.name}: {tensor.bits} bits, error {format_number(tensor.error, 2)}"
    worse = tensor.largest > tensor.error
    return f"{text}, of the worst expert {format_number(tensor.largest, 2)}" if worse else text


def _rank_unit(unit: str) -> int:
    """Mixers first; units of a kind stay in the order they are used."""
    kind = unit.partition(".")[0]
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _map_tensors(places: Sequence[_Place], ranks: dict[int, int]) -> HeatMap:
    found = sorted(dict.fromkeys(place.unit for place in places), key=_rank_unit)
    units = {unit: row for row, unit in enumerate(found)}
    errors = [place.tensor.error for place in places if place.tensor.error > 0] or [1.0]
    most = max(errors)
    least = min(*errors, most / _LEAST_SPAN)
    cells = tuple(
        Cell(
            units[place.unit],
            ranks[place.layer],
            math.log(max(place.tensor.error, least) / least) / math.log(most / least),
            str(place.tensor.bits),
            _tell_tensor(place),
        )
        for place in places
    )
    title = "Bits and relative error of each tensor by layer"
    return HeatMap(title, tuple(units), tuple(map(str, ranks)), "layer", cells)
