"""Places and ticks."""

from __future__ import annotations

import math

import pytest

from lfm2_deploy.charts import linear_axis, log_axis, step_axis


def test_linear_axis_begins_at_zero_and_ends_at_a_round_tick() -> None:
    axis = linear_axis("MB", [214, 372])
    assert (axis.low, axis.high) == (0, 400)
    assert [tick.text for tick in axis.ticks] == ["0", "100", "200", "300", "400"]
    assert axis.place(100) == 0.25


def test_tight_axis_ends_where_the_values_do() -> None:
    axis = linear_axis("position", [256, 510], tight=True)
    assert (axis.place(256), axis.place(510)) == (0, 1)
    assert [tick.text for tick in axis.ticks] == ["300", "400", "500"]
    assert axis.ticks[0].at == pytest.approx(44 / 254)


@pytest.mark.parametrize(
    ("values", "texts"),
    [([0.4], ["0.0", "0.1", "0.2", "0.3", "0.4"]), ([1.2], ["0.00", "0.25", "0.50"])],
)
def test_ticks_have_the_decimals_of_their_step(values: list[float], texts: list[str]) -> None:
    shown = [tick.text for tick in linear_axis("", values).ticks]
    assert shown[: len(texts)] == texts


def test_log_axis_has_whole_decades_labelled_from_the_high_end() -> None:
    axis = log_axis("nats", [3e-7, 0.2])
    assert (axis.low, axis.high) == pytest.approx((1e-7, 1))
    assert [tick.text for tick in axis.ticks] == ["10⁻⁶", "10⁻⁴", "0.01", "1"]
    assert axis.place(math.sqrt(1e-7)) == pytest.approx(0.5)


def test_narrow_log_axis_has_ticks_at_one_two_and_five() -> None:
    axis = log_axis("nats", [0.013, 0.04])
    assert [tick.text for tick in axis.ticks] == ["0.01", "0.02", "0.05"]


def test_values_below_the_least_lie_at_a_low_end_that_says_so() -> None:
    axis = log_axis("nats", [1e-12, 0.0, 0.3], least=1e-6)
    assert axis.ticks[0].text == "≤10⁻⁶"
    assert axis.place(1e-12) == axis.place(0) == 0
    assert log_axis("nats", [1e-5, 0.3], least=1e-6).ticks[0].text == "10⁻⁵"


@pytest.mark.parametrize("values", [[], [0.0], [math.nan, math.inf, -1.0]])
def test_axis_of_nothing_is_an_axis(values: list[float]) -> None:
    for axis in (
        log_axis("", values),
        linear_axis("", values),
        linear_axis("", values, tight=True),
    ):
        assert axis.low < axis.high
        assert all(0 <= tick.at <= 1 for tick in axis.ticks)


def test_places_stay_on_the_axis_whatever_the_value() -> None:
    for axis in (log_axis("", [0.1, 10]), linear_axis("", [3, 7])):
        assert [axis.place(v) for v in (-math.inf, -5, math.inf, math.nan)] == [0, 0, 1, 1]


def test_layers_lie_in_the_middle_of_their_step() -> None:
    axis = step_axis("layer", ["0", "1", "2", "3"])
    assert [axis.place(i) for i in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert [tick.at for tick in axis.ticks] == [0.125, 0.375, 0.625, 0.875]
    assert len(step_axis("layer", [str(i) for i in range(40)], most_ticks=8).ticks) == 8
