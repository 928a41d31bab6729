"""Between which numbers an activation lies, as calibration saw it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Experts see few tokens each, and some none: those of a layer share what all have seen.
_EXPERT = re.compile(r"(/Experts_\d+|\bmoe\.\d+)[./]\d+(?=[./])")


@dataclass(frozen=True, slots=True)
class Range:
    """From the lowest to the highest value; always with 0 in it."""

    low: float = 0.0
    high: float = 0.0

    def join(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def widen(self, factor: float) -> Range:
        """The same, with room for values that were not seen."""
        return Range(self.low * factor, self.high * factor)

    @property
    def reach(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)


# Value name of a lowered graph, through `range_key` -> its range.
Ranges = Mapping[str, Range]


def range_key(value_name: str) -> str:
    """The name under which a value's range is kept: one for all experts of a layer."""
    return _EXPERT.sub(r"\1/*", value_name)


def observe(array: Array) -> Range:
    """The range of an array's numbers."""
    # Three digits: sums in another order, on another machine, give the same graph.
    low, high = (float(f"{x:.2e}") for x in (array.min(), array.max()))
    return Range(min(low, 0.0), max(high, 0.0))


class RangeBook:
    """Collects what calibration sees."""

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}

    def add(self, value_name: str, array: Array) -> None:
        """Take note of a value's numbers."""
        if not np.issubdtype(array.dtype, np.floating) or not array.size:
            return
        key = range_key(value_name)
        self.ranges[key] = self.ranges.get(key, Range()).join(observe(array))
