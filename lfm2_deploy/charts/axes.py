"""Numbers -> places on an axis, from 0 to 1, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lfm2_deploy.charts.numbers import format_number, format_power

# Steps between ticks are one of these times a power of ten.
_STEPS = (1, 2, 2.5, 5, 10)
# Of an axis whose values are all zero, or that has none.
_EMPTY_DECADES = (-6, 0)
# Ticks nearer than this share of the axis to another are left out.
_APART = 0.06
# Errors whose ratio is less are drawn from 0, where heights compare.
_ALIKE = 5.0
# A narrower span has too few powers of ten to read values off.
_FEW_DECADES = 1.5


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis; `at` is from 0 to 1."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies where along one side of a chart.

    Args:
        label: what it measures, with its unit.
        low: the value at 0.
        high: the value at 1.
        ticks: in order.
        logarithmic: whether equal steps are equal ratios; `low` is positive then.
    """

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; what is beyond an end, or not a number, lies at it."""
        if math.isnan(value) or value >= self.high:
            return 1.0
        if value <= self.low:
            return 0.0
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


def linear_axis(
    label: str, values: Iterable[float], *, most_ticks: int = 6, tight: bool = False
) -> Axis:
    """An axis of equal steps from 0, with round ticks.

    Args:
        label: what it measures.
        values: what must lie on it; those that are not finite are passed over.
        most_ticks: how many ticks at most.
        tight: whether it ends where the values do, at both ends, instead of at 0 and a tick.
    """
    finite = [value for value in values if math.isfinite(value)]
    low = min(finite, default=0.0) if tight else 0.0
    high = max(finite, default=1.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _find_step((high - low) / max(1, most_ticks - 1))
    first, last = math.ceil(low / step - 1e-9), math.ceil(high / step - 1e-9)
    if tight:
        last = math.floor(high / step + 1e-9)
    else:
        high = last * step
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += f"{step:e}".startswith("2.5") and step < 25
    marks = [step * i for i in range(first, last + 1)]
    ticks = [Tick((m - low) / (high - low), f"{m:,.{decimals}f}") for m in marks]
    return Axis(label, low, high, tuple(ticks))


def _find_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def log_axis(
    label: str, values: Iterable[float], *, least: float = 0.0, most_ticks: int = 6
) -> Axis:
    """An axis of whole decades, or of thirds of them where the values lie close together.

    Args:
        label: what it measures.
        values: what must lie on it; zero, less, and what is not finite are passed over.
        least: smaller values lie at the low end, whose tick says so.
        most_ticks: how many ticks at most.
    """
    given = [value for value in values if math.isfinite(value)]
    logs = [math.log10(max(value, least)) for value in given if max(value, least) > 0]
    axis = _make_log_axis(label, logs, most_ticks)
    if any(value < least for value in given):
        first = axis.ticks[1:] if axis.ticks[0].at == 0 else axis.ticks
        lowest = Tick(0.0, f"≤{_format_mark(axis.low)}")
        axis = replace(axis, ticks=(lowest, *(tick for tick in first if tick.at > _APART)))
    return axis


def _format_mark(value: float) -> str:
    exponent = round(math.log10(value))
    exact = math.isclose(value, 10.0**exponent)
    return format_power(exponent) if exact else format_number(value, 1)


def _make_log_axis(label: str, logs: Sequence[float], most_ticks: int) -> Axis:
    if logs and max(logs) - min(logs) < _FEW_DECADES:
        return _make_fine_axis(label, min(logs), max(logs))
    low, high = _EMPTY_DECADES
    if logs:
        low, high = math.floor(min(logs) + 1e-9), math.ceil(max(logs) - 1e-9)
    every = math.ceil((high - low) / max(1, most_ticks - 1))
    # Counted from the high end, which is where the bad values are.
    exponents = range(high, low - 1, -every)
    ticks = [Tick((e - low) / (high - low), format_power(e)) for e in reversed(exponents)]
    return Axis(label, 10.0**low, 10.0**high, tuple(ticks), logarithmic=True)


def _make_fine_axis(label: str, low: float, high: float) -> Axis:
    """Ticks at 1, 2 and 5 in each decade; `low` and `high` are logarithms."""
    decades = range(math.floor(low) - 1, math.ceil(high) + 2)
    marks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if math.log10(mark) <= low + 1e-9)
    last = min(i for i, mark in enumerate(marks) if math.log10(mark) >= high - 1e-9)
    last += first == last
    width = math.log10(marks[last] / marks[first])
    ticks = [
        Tick(math.log10(mark / marks[first]) / width, _format_mark(mark))
        for mark in marks[first : last + 1]
    ]
    return Axis(label, marks[first], marks[last], tuple(ticks), logarithmic=True)


def error_axis(label: str, values: Iterable[float]) -> Axis:
    """An axis of errors: from 0 where they are of one size, of decades where they are not."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    alike = bool(positive) and max(positive) < _ALIKE * min(positive)
    return linear_axis(label, positive) if alike else log_axis(label, positive)


def step_axis(label: str, names: Sequence[str], *, most_ticks: int = 12) -> Axis:
    """An axis of numbered places, such as layers: half a step is left free at both ends."""
    count = max(1, len(names))
    every = math.ceil(count / most_ticks)
    ticks = [Tick((i + 0.5) / count, names[i]) for i in range(0, len(names), every)]
    return Axis(label, -0.5, count - 0.5, tuple(ticks))
