"""The best choice within a size, counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from exporters.quantize import budget
from exporters.quantize.budget import Choice, Option, Unit, choose
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.errors import ExportError


def unit(name: str, *options: tuple[int, float]) -> Unit:
    """A unit of one tensor, from sizes and costs."""
    plans = {name: TensorPlan(4, 32, "")}
    return Unit(0, "mixer", tuple(Option(f"{name}{size}", plans, size, c) for size, c in options))


def labels(choice: Choice) -> list[str]:
    return [option.label for option in choice.options]


TWO = (unit("a", (10, 5), (20, 1)), unit("b", (10, 8), (30, 1)))


@pytest.mark.parametrize(
    ("size", "expected", "cost"),
    [
        (20, ["a10", "b10"], 13),
        (29, ["a10", "b10"], 13),
        (30, ["a20", "b10"], 9),
        (40, ["a10", "b30"], 6),
        (50, ["a20", "b30"], 2),
        (10**12, ["a20", "b30"], 2),
    ],
)
def test_units_get_what_lowers_the_sum_most(size: int, expected: list[str], cost: float) -> None:
    choice = choose(TWO, size)
    assert (labels(choice), choice.cost) == (expected, cost)
    assert choice.size_bytes == sum(option.size_bytes for option in choice.options)


def test_the_best_gain_for_a_byte_is_left_where_another_fills_the_size_better() -> None:
    # a gains 4 for 3 bytes, b 10 for 10: taking a first leaves no room for b.
    units = (unit("a", (10, 4), (13, 0)), unit("b", (10, 10), (20, 0)))
    assert labels(choose(units, 30)) == ["a10", "b20"]


def test_an_option_that_is_larger_and_worse_is_never_chosen() -> None:
    assert labels(choose((unit("a", (10, 3), (20, 4)),), 100)) == ["a10"]


def test_of_equal_costs_the_smaller_is_chosen() -> None:
    assert labels(choose((unit("a", (10, 3), (20, 3)),), 100)) == ["a10"]


def test_a_size_that_nothing_fits_into_is_refused_with_the_smallest() -> None:
    with pytest.raises(ExportError, match=r"at least 20 bytes, and 19 are left.*--max-size"):
        choose(TWO, 19)


def test_a_cost_that_nobody_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="measured"):
        choose((unit("a", (10, float("nan"))),), 100)


def test_plans_of_all_units_are_joined() -> None:
    assert set(choose(TWO, 50).plans) == {"a", "b"}


def make_random(count: int, seed: int) -> tuple[Unit, ...]:
    numbers = np.random.default_rng(seed)

    def options() -> list[tuple[int, float]]:
        sizes, costs = numbers.integers(1, 100, 3), numbers.random(3)
        return [
            (int(size), float(cost))
            for size, cost in zip(sorted(sizes), sorted(costs)[::-1], strict=True)
        ]

    return tuple(unit(str(number), *options()) for number in range(count))


@pytest.mark.parametrize("seed", range(3))
def test_every_size_gets_the_best_of_all_choices(seed: int) -> None:
    units = make_random(5, seed)
    every = [
        (sum(o.size_bytes for o in options), sum(o.cost for o in options))
        for options in itertools.product(*(unit.options for unit in units))
    ]
    smallest = min(size for size, _ in every)
    for size in range(smallest, 520, 7):
        best = min(cost for taken, cost in every if taken <= size)
        choice = choose(units, size)
        assert choice.size_bytes <= size
        assert choice.cost == pytest.approx(best, rel=1e-12)  # sums in another order


def test_where_choices_are_thinned_a_larger_size_is_never_worse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = make_random(8, seed=3)
    smallest = sum(unit.options[0].size_bytes for unit in units)
    exact = [choose(units, size).cost for size in range(smallest, 800)]
    monkeypatch.setattr(budget, "_MOST_CHOICES", 64)
    thinned = [choose(units, size) for size in range(smallest, 800)]
    assert all(choice.size_bytes <= smallest + n for n, choice in enumerate(thinned))
    assert all(b.cost <= a.cost for a, b in itertools.pairwise(thinned))
    assert any(
        t.cost > e for t, e in zip(thinned, exact, strict=True)
    )  # there was something to lose
    assert thinned[-1].cost == exact[-1]
