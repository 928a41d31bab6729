"""How a bundle's weights were rounded, and what that was measured to cost.

Written by the exporter, kept in the manifest, shown by `inspect`. Errors are relative: the
root mean square of what rounding changes, over that of the exact values, so 0.05 is 5 %.

There are two kinds, which must not be compared with each other. `WeightError` is of the weights
themselves, needs no text, and is there for every method. `TensorError` and `LayerError` are of
what comes out on the calibration text, are there for methods that calibrate, and hold for that
text alone: a method that makes up for lost columns makes the first larger and the second smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from reprlib import repr as shorten
from typing import Any, TypeAlias

# With fewer, what is measured on a text says little of others.
# Of the demo model in int4, 2,200 tokens win half of what 33,000 do, and 10,500 three quarters.
FEW_TOKENS = 8192
OF_WEIGHTS = (
    "errors are of the weights alone, without a text: not to be compared with errors of products, "
    "nor between methods that calibrate and methods that do not"
)
OF_PRODUCTS = (
    "errors are of what layers compute on the calibration text itself: they do not compare between "
    "texts, and a short text looks best"
)
# More than any model has: a record may come from anywhere.
_MOST_LINES = 100_000
# Far above what any export writes; squares and sums of them are still floats.
_LONGEST_NAME, _MOST_COUNTED, _LARGEST_ERROR = 1000, 1 << 63, 1e30


@dataclass(frozen=True, slots=True)
class TensorError:
    """What rounding one tensor changes of its product, on the inputs that it had.

    Args:
        name: the tensor; with a `*`, that matrix of all experts of a layer.
        bits: of each number.
        group: neighbours along the input axis that share a scale.
        error: of x W^T, relative; of experts the root mean square.
        largest: the same, of the expert with the largest; of other tensors equal to `error`.
    """

    name: str
    bits: int
    group: int
    error: float
    largest: float


@dataclass(frozen=True, slots=True)
class WeightError:
    """How far a tensor's stored numbers are from the exact ones: ||W - Q|| / ||W||, Frobenius.

    Args:
        name: the tensor; with a `*`, that matrix of all experts of a layer.
        bits: of each number.
        group: neighbours along the input axis that share a scale.
        error: relative; of experts the root mean square. After AWQ, of the scaled weights.
        largest: the same, of the expert with the largest; of other tensors equal to `error`.
    """

    name: str
    bits: int
    group: int
    error: float
    largest: float


@dataclass(frozen=True, slots=True)
class UnitChoice:
    """How a part of the model got its bits under a size.

    Args:
        layer: its number; None for a table.
        kind: "mixer", "feed_forward", "embedding" or "head".
        label: how it is stored, such as "8 bits, groups of 32".
        bits: the same in few characters: "8"; of several widths "4/8".
        group: "32"; of several "32/128".
        size_bytes: of its levels and scales.
        cost: KL divergence that it adds when it alone is rounded so, nats.
        least_label, least_bits, least_group: of its smallest option.
        least_cost: what that would add, nats.
    """

    layer: int | None
    kind: str
    label: str
    bits: str
    group: str
    size_bytes: int
    cost: float
    least_label: str
    least_bits: str
    least_group: str
    least_cost: float


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """What a size was spent on.

    Args:
        budget_bytes: what was left for all parts together.
        size_bytes: what they take.
        cost: the sum of their costs: the KL divergence that is foreseen, nats.
        text: name of the text that costs were measured on.
        tokens: how many of it.
        units: the parts, in the model's order.
    """

    budget_bytes: int
    size_bytes: int
    cost: float
    text: str
    tokens: int
    units: tuple[UnitChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerError:
    """What a layer's output has lost, and what its experts saw.

    Args:
        layer: its number.
        error: of the hidden state after the layer against the exact model's, relative; what
            earlier layers lost is in it.
        fewest_tokens: calibration tokens of the expert that fewest chose; 0 without experts.
        median_tokens: of all the layer's experts, rounded down.
        rare_experts: how many were chosen by fewer tokens than the rule asks for, and so were
            calibrated on others besides.
    """

    layer: int
    error: float
    fewest_tokens: int = 0
    median_tokens: int = 0
    rare_experts: int = 0


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """How weights were rounded.

    Args:
        method: "rtn", "search", "awq", "gptq" or "awq+gptq".
        text: name of the calibration text; "" for methods that need none.
        text_sha256: of the text in UTF-8, its line ends as "\\n".
        tokens: how many were used.
        rare_below: an expert chosen by fewer tokens is rare, and is calibrated also on those
            that come closest to choosing it; 0 where nothing was calibrated.
        max_size_bytes: the size that was asked for; 0 where none was.
        tensors: errors of products on the text, by layer, in the order they are used.
        layers: in order; like `tensors`, empty where nothing was calibrated.
        weights: errors of the weights themselves, in the model's order; empty in bundles of
            versions that did not measure them.
        choice: what the size was spent on; None where none was asked for, or not recorded.
    """

    method: str
    text: str = ""
    text_sha256: str = ""
    tokens: int = 0
    rare_below: int = 0
    max_size_bytes: int = 0
    tensors: tuple[TensorError, ...] = ()
    layers: tuple[LayerError, ...] = ()
    weights: tuple[WeightError, ...] = ()
    choice: SizeChoice | None = None

    @property
    def is_of_products(self) -> bool:
        """Whether errors were measured on a text; if not, those of the weights are all there is."""
        return bool(self.tensors or self.layers)

    @property
    def errors(self) -> tuple[TensorError, ...] | tuple[WeightError, ...]:
        """Errors by tensor, all of one kind: of products where those were measured."""
        return self.tensors if self.is_of_products else self.weights

    @property
    def has_few_tokens(self) -> bool:
        """Whether the text was too short for its errors to say much."""
        return self.is_of_products and self.tokens < FEW_TOKENS


_Entry: TypeAlias = (
    QuantizationRecord | TensorError | WeightError | LayerError | SizeChoice | UnitChoice
)


def parse_record(raw: Any) -> QuantizationRecord:
    """A record as JSON holds it, checked.

    Raises:
        ValueError, TypeError, KeyError: it is not one.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"rounding is {shorten(raw)}, expected an object")
    record = QuantizationRecord(
        **{
            **raw,
            "tensors": _parse_lines(TensorError, raw.get("tensors", [])),
            "layers": _parse_lines(LayerError, raw.get("layers", [])),
            "weights": _parse_lines(WeightError, raw.get("weights", [])),
            "choice": _parse_choice(raw.get("choice")),
        }
    )
    entries: list[_Entry] = [record, *record.tensors, *record.layers, *record.weights]
    if record.choice is not None:
        entries += [record.choice, *record.choice.units]
    for entry in entries:
        _check(entry)
    return record


def _parse_choice(raw: Any) -> SizeChoice | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError(f"choice of a rounding record is {shorten(raw)}, expected an object")
    return SizeChoice(**{**raw, "units": _parse_lines(UnitChoice, raw.get("units", []))})


def _parse_lines(kind: type[Any], raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list) or len(raw) > _MOST_LINES:
        raise ValueError(f"rounding lists {shorten(raw)}")
    return tuple(kind(**line) for line in raw)


def _check(entry: _Entry) -> None:
    """Refuse what cannot be shown or drawn."""
    for field in fields(entry):
        value, kind = getattr(entry, field.name), field.type
        if kind == "str":
            fits = type(value) is str and len(value) <= _LONGEST_NAME
        elif kind in ("int", "int | None"):
            is_left_out = value is None and kind != "int"
            fits = is_left_out or (type(value) is int and 0 <= value < _MOST_COUNTED)
        elif kind == "float":
            fits = type(value) in (int, float) and 0 <= value <= _LARGEST_ERROR
        else:
            continue
        if not fits:
            raise ValueError(f"{field.name} of a rounding record is {shorten(value)}")
