"""How a bundle's weights were rounded, and what that was measured to cost.

Written by the exporter, kept in the manifest, shown by `inspect`. Errors are relative: the
root mean square of what rounding changes, over that of the exact values, so 0.05 is 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from reprlib import repr as shorten
from typing import Any

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
        tensors: by layer, in the order they are used.
        layers: in order.
    """

    method: str
    text: str = ""
    text_sha256: str = ""
    tokens: int = 0
    rare_below: int = 0
    max_size_bytes: int = 0
    tensors: tuple[TensorError, ...] = ()
    layers: tuple[LayerError, ...] = ()


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
        }
    )
    entries: tuple[QuantizationRecord | TensorError | LayerError, ...]
    entries = (record, *record.tensors, *record.layers)
    for entry in entries:
        _check(entry)
    return record


def _parse_lines(kind: type[Any], raw: Any) -> tuple[Any, ...]:
    if not isinstance(raw, list) or len(raw) > _MOST_LINES:
        raise ValueError(f"rounding lists {shorten(raw)}")
    return tuple(kind(**line) for line in raw)


def _check(entry: QuantizationRecord | TensorError | LayerError) -> None:
    """Refuse what cannot be shown or drawn."""
    for field in fields(entry):
        value, kind = getattr(entry, field.name), field.type
        if kind == "str":
            fits = type(value) is str and len(value) <= _LONGEST_NAME
        elif kind == "int":
            fits = type(value) is int and 0 <= value < _MOST_COUNTED
        elif kind == "float":
            fits = type(value) in (int, float) and 0 <= value <= _LARGEST_ERROR
        else:
            continue
        if not fits:
            raise ValueError(f"{field.name} of a rounding record is {shorten(value)}")
