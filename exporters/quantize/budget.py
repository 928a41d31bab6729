"""Costs and sizes of each part of a model -> which bits each part gets. Pure: no arrays read.

A unit is what is chosen for at once: a layer's mixer, its feed-forward block with all experts,
or a table. Each has options, which are ways to store it. Errors of parts that are small add up
(`sensitivity.py` says how well), so the best choice is the one whose costs have the smallest sum.

It is found exactly, as long as there are few sums of sizes: the choices that no other beats in
both size and cost are kept while unit after unit is added. Layers of a kind are of one size, so
there are few; beyond 65,536, the cheapest of each 65,536th of the range is kept. None of this
depends on the budget, so a larger budget never gives a worse choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exporters.quantize.plan import TensorPlan
from lfm2_deploy.errors import ExportError

UnitKind = Literal["mixer", "feed_forward", "embedding", "head"]
_MOST_CHOICES = 1 << 16


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a unit.

    Args:
        label: for people, such as "4 bits, groups of 32".
        plans: how each of the unit's tensors is stored, by name.
        size_bytes: what all of them take.
        cost: KL divergence that storing them so adds, nats; nan where nobody measured it.
    """

    label: str
    plans: Mapping[str, TensorPlan]
    size_bytes: int
    cost: float = math.nan

    @property
    def bits(self) -> str:
        """Of a level, in few characters: "4", or where tensors differ "4/8"."""
        return _join(plan.bits for plan in self.plans.values())

    @property
    def group(self) -> str:
        """Levels that share a scale, likewise."""
        return _join(plan.group for plan in self.plans.values())


def _join(numbers: Iterable[int]) -> str:
    return "/".join(map(str, sorted(set(numbers))))


@dataclass(frozen=True, slots=True)
class Unit:
    """What gets its bits at once.

    Args:
        layer: its number; None for a table.
        kind: which half of a layer, or which table. A tied table is the "embedding".
        options: the ways to store it, smallest first.
    """

    layer: int | None
    kind: UnitKind
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        """For people."""
        return self.kind if self.layer is None else f"layer {self.layer} {self.kind}"


@dataclass(frozen=True, slots=True)
class Choice:
    """An option for each unit.

    Args:
        options: in the order of the units.
        size_bytes: of all of them.
        cost: the sum of their costs, nats.
    """

    options: tuple[Option, ...]
    size_bytes: int
    cost: float

    @property
    def plans(self) -> dict[str, TensorPlan]:
        """How each tensor is stored."""
        return {name: plan for option in self.options for name, plan in option.plans.items()}


@dataclass(frozen=True, slots=True)
class _Front:
    """Choices for the units so far, none of which another beats; sizes rise, costs fall.

    Args:
        sizes: int64 [N]; costs: float64 [N].
        parents: which entry of the front before it each one extends, and `picks`: with which
            option of the last unit. int32 [N] both.
    """

    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]
    parents: NDArray[np.int32]
    picks: NDArray[np.int32]


def choose(units: Sequence[Unit], budget_bytes: int) -> Choice:
    """The options whose costs have the smallest sum within a size.

    Of equal choices the smaller is taken.

    Args:
        units: with their costs measured.
        budget_bytes: what all units together may take.

    Raises:
        ExportError: not even the smallest options fit; says how much they take.
        ValueError: an option's cost is not known.
    """
    if any(not math.isfinite(option.cost) for unit in units for option in unit.options):
        raise ValueError("every option needs a measured cost")
    smallest = sum(min(option.size_bytes for option in unit.options) for unit in units)
    if smallest > budget_bytes:
        raise ExportError(
            f"these weights take at least {smallest:,} bytes, and {budget_bytes:,} are left for "
            "them: ask for a larger --max-size, or take a smaller model"
        )
    fronts = list_fronts(units)
    last = int(np.searchsorted(fronts[-1].sizes, budget_bytes, side="right")) - 1
    size, cost = int(fronts[-1].sizes[last]), float(fronts[-1].costs[last])
    found = []
    for unit, front in zip(reversed(units), reversed(fronts), strict=True):
        found.append(unit.options[int(front.picks[last])])
        last = int(front.parents[last])
    return Choice(tuple(reversed(found)), size, cost)


def list_fronts(units: Sequence[Unit]) -> list[_Front]:
    """The best choices after each unit."""
    start = np.zeros(1, np.int32)
    front = _Front(np.zeros(1, np.int64), np.zeros(1), start, start)
    fronts = []
    for unit in units:
        front = _extend(front, unit)
        fronts.append(front)
    return fronts


def _extend(front: _Front, unit: Unit) -> _Front:
    count, options = len(front.sizes), len(unit.options)
    own_sizes = np.array([option.size_bytes for option in unit.options], np.int64)
    own_costs = np.array([option.cost for option in unit.options])
    sizes = (front.sizes[:, None] + own_sizes).ravel()
    costs = (front.costs[:, None] + own_costs).ravel()
    parents = np.repeat(np.arange(count, dtype=np.int32), options)
    picks = np.tile(np.arange(options, dtype=np.int32), count)
    order = np.lexsort((costs, sizes))
    costs_before = np.minimum.accumulate(np.append(np.inf, costs[order]))[:-1]
    kept = _thin(order[costs[order] < costs_before], sizes)
    return _Front(sizes[kept], costs[kept], parents[kept], picks[kept])


def _thin(front: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each bucket of sizes the last and so the cheapest; and the smallest of all."""
    if len(front) <= _MOST_CHOICES:
        return front
    first, last = int(sizes[front[0]]), int(sizes[front[-1]])
    buckets = (sizes[front] - first) // (-(-(last - first + 1) // (_MOST_CHOICES - 1)))
    ends: NDArray[np.bool_] = np.append(buckets[1:] != buckets[:-1], True)
    ends[0] = True
    thinned: NDArray[np.int64] = front[ends]
    return thinned
