"""A bundle's record of rounding -> charts of error, bits and cost by layer, or an SVG file of all.

A chart shows one kind of error: of products on the calibration text where a record has them, else
of the weights themselves.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.charts.axes import error_axis, step_axis
from lfm2_deploy.charts.chart import Chart, Dot, Line
from lfm2_deploy.charts.heat import ROW_HEIGHT, Cell, HeatMap, render_heat_map
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.charts.svg import Panel, render_chart, write_panels
from lfm2_deploy.quantization_record import (
    FEW_TOKENS,
    OF_PRODUCTS,
    OF_WEIGHTS,
    LayerError,
    QuantizationRecord,
    SizeChoice,
    TensorError,
    UnitChoice,
    WeightError,
)

# Shades span at least this ratio of errors, so that near ones look alike.
_LEAST_SPAN = 4.0
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+?)(?:\.weight)?")
_CHART_HEIGHT = 240
_REMARK_WIDTH = 120
_HIDDEN, _OWN = 0, 1
# Of tensors, in the order of their rows.
_KINDS = ("conv", "attn", "feed_forward", "experts")


@dataclass(frozen=True, slots=True)
class RoundingPlot:
    """What is drawn of a record.

    Args:
        by_layer: the layers' outputs and their worst tensors; None where neither is recorded.
        by_tensor: each tensor of each layer; None where none is recorded.
        by_cost: what each part of a layer adds, and would add in its smallest form; None where
            no size was asked for.
        elsewhere: tensors of no layer, such as the embedding.
    """

    by_layer: Chart | None
    by_tensor: HeatMap | None
    by_cost: Chart | None
    elsewhere: tuple[TensorError | WeightError, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    layer: int
    unit: str
    tensor: TensorError | WeightError


LEGEND = ((_HIDDEN, "output of the layer, all before it rounded too"), (_OWN, "its worst tensor"))
_PARTS = ("mixer", "feed_forward")
COST_LEGEND = ((0, "mixer; ring: smallest form"), (1, "feed-forward; ring: smallest form"))


def plot_rounding(record: QuantizationRecord) -> RoundingPlot:
    """The charts of a record.

    Args:
        record: of a manifest, so it may come from anywhere.
    """
    places = [*filter(None, map(_find_place, record.errors))]
    inside = {id(place.tensor) for place in places}
    # By rank, since a number in a name may be anything.
    layers = sorted({p.layer for p in places} | {entry.layer for entry in record.layers})
    ranks = {layer: rank for rank, layer in enumerate(layers)}
    return RoundingPlot(
        _chart_layers(record, places, ranks) if layers else None,
        _map_tensors(places, ranks) if places else None,
        None if record.choice is None else _chart_costs(record.choice),
        (*(tensor for tensor in record.errors if id(tensor) not in inside), *_list_tables(record)),
    )


def _list_tables(record: QuantizationRecord) -> list[WeightError]:
    """Of a calibrated model, tensors that are rounded without the text."""
    if not record.is_of_products:
        return []
    known = {tensor.name for tensor in record.tensors}
    return [line for line in record.weights if line.name not in known and not _find_place(line)]


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
        legend = LEGEND if record.is_of_products else LEGEND[1:]
        heading = "Error by layer" if record.is_of_products else "Error of the weights by layer"
        panels.append(Panel(heading, legend, chart, _CHART_HEIGHT))
    if plot.by_cost:
        chart = render_chart(plot.by_cost, _CHART_HEIGHT)
        heading = "KL divergence that each part alone adds"
        panels.append(Panel(heading, COST_LEGEND, chart, _CHART_HEIGHT))
    if plot.by_tensor:
        height = ROW_HEIGHT * len(plot.by_tensor.rows)
        heading = "Bits of each tensor, stronger where its error is larger"
        panels.append(Panel(heading, (), render_heat_map(plot.by_tensor), height))
    write_panels(title, list_remarks(record, plot), panels, file)


def list_remarks(record: QuantizationRecord, plot: RoundingPlot) -> list[str]:
    """How weights were rounded and what errors are of, a line for each."""
    how = f"method {record.method}"
    if record.tokens:
        how += f", calibrated on {record.tokens:,} tokens of {record.text}"
    lines = [how]
    if record.errors or record.layers:
        kind = OF_PRODUCTS if record.is_of_products else OF_WEIGHTS
        # Broken where a file of 900 pixels ends.
        lines += textwrap.wrap(kind, _REMARK_WIDTH)
    if record.has_few_tokens:
        lines.append(f"Warning: with fewer than {FEW_TOKENS:,} tokens errors look too small")
    if record.choice is not None:
        lines.append(_tell_choice(record.choice))
    for tensor in plot.elsewhere:
        kind = "error of its weights" if isinstance(tensor, WeightError) else "error"
        error = format_number(tensor.error, 2)
        lines.append(f"{tensor.name}: {tensor.bits} bits, {kind} {error}")
    return lines


def _tell_choice(choice: SizeChoice) -> str:
    return (
        f"parts take {choice.size_bytes:,} of {choice.budget_bytes:,} bytes; their costs add up to "
        f"{format_number(choice.cost, 2)} nats, on {choice.tokens:,} tokens of {choice.text}"
    )


def _chart_costs(choice: SizeChoice) -> Chart:
    units = [unit for unit in choice.units if unit.layer is not None and unit.kind in _PARTS]
    layers = sorted({unit.layer for unit in units if unit.layer is not None})
    ranks = {layer: rank for rank, layer in enumerate(layers)}
    lines, dots = [], []
    for number, part in enumerate(_PARTS):
        own = [(ranks[u.layer], u) for u in units if u.kind == part and u.layer is not None]
        lines.append(Line(part, number, tuple((float(x), u.cost) for x, u in own)))
        for x, unit in own:
            dots.append(Dot(number, x, unit.cost, _tell_unit(unit)))
            dots.append(Dot(number, x, unit.least_cost, _tell_least(unit), "ring"))
    y = error_axis("nats", [cost for u in units for cost in (u.cost, u.least_cost)])
    names = [str(layer) for layer in layers]
    title = "Cost of rounding by layer, as stored and in the smallest form"
    return Chart(title, step_axis("layer", names), y, tuple(lines), tuple(dots))


def _tell_unit(unit: UnitChoice) -> str:
    cost = format_number(unit.cost, 2)
    return f"layer {unit.layer} {unit.kind}: got {unit.label}, which adds {cost} nats"


def _tell_least(unit: UnitChoice) -> str:
    cost = format_number(unit.least_cost, 2)
    return f"layer {unit.layer} {unit.kind}: {unit.least_label} would add {cost} nats"


def _find_place(tensor: TensorError | WeightError) -> _Place | None:
    match = _LAYER.fullmatch(tensor.name)
    # Longer numbers are no layers, and take forever to read.
    if match is None or len(match[1]) > 6:
        return None
    unit = match[2].replace("feed_forward.experts.*.", "experts.*.").replace("self_attn.", "attn.")
    return _Place(int(match[1]), unit, tensor)


def _chart_layers(
    record: QuantizationRecord, places: Sequence[_Place], ranks: dict[int, int]
) -> Chart:
    hidden = [(ranks[entry.layer], entry.error, _tell_layer(entry)) for entry in record.layers]
    worst: dict[int, _Place] = {}
    for place in places:
        other = worst.get(place.layer)
        if other is None or place.tensor.error > other.tensor.error:
            worst[place.layer] = place
    own = [(ranks[n], p.tensor.error, _tell_tensor(p)) for n, p in sorted(worst.items())]
    series = [(_HIDDEN, hidden), (_OWN, own)] if record.is_of_products else [(_OWN, own)]
    label = "relative error" if record.is_of_products else "error of weights"
    y = error_axis(label, [error for _, points in series for _, error, _ in points])
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
    stored = f"{tensor.bits} bits in groups of {tensor.group}"
    text = f"{tensor.name}: {stored}, error {format_number(tensor.error, 2)}"
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
