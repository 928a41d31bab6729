"""Numbers -> places on an axis, from 0 to 1, and where its ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lfm2_deploy.charts.numbers import format_power

# Steps between ticks are one of these times a power of ten.
_STEPS = (1, 2, 2.5, 5, 10)
# Of an axis whose values are all zero, or that has none.
_EMPTY_DECADES = (-6, 0)


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
        """Where a value lies; on a logarithmic axis zero and less lie at its low end."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        ratio = math.log(max(value, self.low) / self.low)
        return ratio / math.log(self.high / self.low)


def linear_axis(
    label: str, values: Iterable[float], *, most_ticks: int = 6, from_zero: bool = True
) -> Axis:
    """An axis of equal steps, with round ticks.

    Args:
        label: what it measures.
        values: what must lie on it; those that are not finite are passed over.
        most_ticks: how many ticks at most.
        from_zero: whether it begins at 0.
    """
    finite = [value for value in values if math.isfinite(value)]
    low = 0.0 if from_zero else min(finite, default=0.0)
    high = max(finite, default=1.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _find_step((high - low) / max(1, most_ticks - 1))
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    count = round((high - low) / step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (step * 10 % 5 == 2.5))
    marks = [low + step * i for i in range(count + 1)]
    ticks = [Tick((m - low) / (high - low), f"{m:,.{decimals}f}") for m in marks]
    return Axis(label, low, high, tuple(ticks))


def _find_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def log_axis(label: str, values: Iterable[float], *, most_ticks: int = 6) -> Axis:
    """An axis of whole decades.

    Args:
        label: what it measures.
        values: what must lie on it; zero, less, and what is not finite are passed over.
        most_ticks: how many ticks at most.
    """
    logs = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
    low, high = _EMPTY_DECADES
    if logs:
        low, high = math.floor(min(logs) + 1e-9), math.ceil(max(logs) - 1e-9)
        low -= low == high
    every = math.ceil((high - low) / max(1, most_ticks - 1))
    # Counted from the high end, which is where the bad values are.
    exponents = range(high, low - 1, -every)
    ticks = [Tick((e - low) / (high - low), format_power(e)) for e in reversed(exponents)]
    return Axis(label, 10.0**low, 10.0**high, tuple(ticks), logarithmic=True)


def step_axis(label: str, names: Sequence[str], *, most_ticks: int = 12) -> Axis:
    """An axis of numbered places, such as layers: half a step is left free at both ends."""
    count = max(1, len(names))
    every = math.ceil(count / most_ticks)
    ticks = [Tick((i + 0.5) / count, names[i]) for i in range(0, len(names), every)]
    return Axis(label, -0.5, count - 0.5, tuple(ticks))
