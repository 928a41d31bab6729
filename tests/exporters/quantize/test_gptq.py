"""Rounding to grids: steps, columns that make up for others, sweeps, hand-computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exporters.quantize import gptq
from exporters.quantize.gptq import (
    damp,
    factorize,
    measure_error,
    round_feeding_on,
    round_nearest,
)
from exporters.quantize.grid import Grid, half, search_steps
from exporters.quantize.moments import Moments, even_out, shrink


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, seed: int = 0) -> Tensor:
    """The second moment of inputs that go together."""
    x = normal(4 * columns, columns // 4, seed=seed) @ normal(columns // 4, columns, seed=seed + 1)
    x += 0.3 * normal(4 * columns, columns, seed=seed + 2)
    return x.T @ x / len(x)


@pytest.mark.parametrize("extreme", [-8.0, 7.0])
def test_weights_on_a_grid_get_its_step(extreme: float) -> None:
    weight = 0.25 * torch.tensor([[extreme, 5, -3, 0]])
    assert search_steps(weight, torch.ones(4), Grid(4, 4)).abs().tolist() == [[0.25]]


def test_step_favours_columns_that_count() -> None:
    weight = torch.tensor([[1.0, 0.3, 0.3, 0.3]])
    even = search_steps(weight, torch.ones(4), Grid(4, 4))
    steps = search_steps(weight, torch.tensor([1e-6, 1, 1, 1]), Grid(4, 4))

    def error(step: Tensor) -> float:
        level = (0.3 / step).round().clamp(-8, 7)
        return abs(float(level * step - 0.3))

    assert error(steps) < error(even)


@pytest.mark.parametrize("bits", [4, 8])
def test_narrow_grid_never_uses_the_lowest_level(bits: int) -> None:
    grid = Grid(bits, 32, narrow=True)
    found = round_feeding_on(normal(16, 64), correlated(64), grid)
    assert int(found.levels.min()) >= -grid.highest
    assert int(found.levels.max()) <= grid.highest


def test_steps_are_numbers_that_float16_holds() -> None:
    found = round_feeding_on(normal(16, 64) * 1e-3, correlated(64), Grid(4, 32))
    assert torch.equal(found.steps, found.steps.half().float())


def test_tiny_step_stays_above_zero() -> None:
    steps = half(torch.tensor([1e-9, -1e-9, 0.0, 1.0]))
    assert steps.tolist() == [2.0**-24, -(2.0**-24), 0.0, 1.0]


def test_columns_apart_are_rounded_to_nearest() -> None:
    # With a diagonal moment nothing can make up for anything.
    weight, moment = normal(8, 32), torch.diag(torch.linspace(0.5, 2, 32))
    found = round_feeding_on(weight, moment.clone(), Grid(4, 32))
    wide = found.steps.repeat_interleave(32, 1)
    assert torch.equal(found.levels, (weight / wide).round().clamp(-8, 7))


def test_second_column_makes_up_for_the_first() -> None:
    # Both inputs are always equal, so only the sum of a row counts. Every step is 1, since
    # third and fourth columns, which are apart, use the whole grid.
    weight = torch.tensor([[0.4, 0.4, -8.0, 7.0]])
    moment = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]])
    near = round_nearest(weight, moment, Grid(4, 4)).expand()
    found = round_feeding_on(weight, moment, Grid(4, 4)).expand()
    assert near[0, :2].abs().sum() < 0.1
    assert abs(float(found[0, :2].sum()) - 0.8) < 0.25


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_correlated_inputs_lose_less_than_by_rounding_to_nearest(bits: int, group: int) -> None:
    weight, moment, grid = normal(48, 128), correlated(128), Grid(bits, group)
    near = measure_error(weight, round_nearest(weight, moment, grid).expand(), moment)
    found = measure_error(weight, round_feeding_on(weight, moment.clone(), grid).expand(), moment)
    assert found < 0.6 * near  # seen: 0.40 to 0.45


def test_factor_is_upper_and_gives_the_moment_back() -> None:
    moment, order = damp(correlated(32)), torch.randperm(32, generator=torch.Generator())
    upper = factorize(moment.clone(), order)
    assert torch.equal(upper, upper.triu())
    # float32 products of 32 numbers.
    torch.testing.assert_close(upper @ upper.T, moment[order][:, order], rtol=1e-4, atol=1e-4)


def test_inputs_that_are_never_there_do_no_harm() -> None:
    moment = correlated(32)
    moment[:, 5], moment[5] = 0, 0
    found = round_feeding_on(normal(8, 32), moment, Grid(4, 32)).expand()
    assert torch.isfinite(found).all()


def test_no_inputs_at_all_are_rounded_to_nearest() -> None:
    found = round_feeding_on(normal(8, 32), damp(torch.zeros(32, 32)), Grid(4, 32)).expand()
    assert torch.isfinite(found).all()
    assert float((found - normal(8, 32)).abs().max()) < 0.5


def test_matrix_of_zeros_stays_one() -> None:
    found = round_feeding_on(torch.zeros(4, 32), correlated(32), Grid(4, 32))
    assert not found.expand().any()


def test_corrected_weight_gives_the_exact_outputs_on_other_inputs() -> None:
    weight, rounded = normal(8, 16), normal(400, 16, seed=3)
    # The exact model's inputs are a linear map of the rounded one's, so all can be made up for.
    exact = rounded @ (torch.eye(16) + 0.1 * normal(16, 16, seed=4)).T
    moments = Moments(weight)
    for piece in (slice(0, 150), slice(150, 400)):
        moments.add(exact[piece], rounded[piece])
    _, wanted = moments.take()
    before = (rounded @ weight.T - exact @ weight.T).square().mean()
    after = (rounded @ wanted.T - exact @ weight.T).square().mean()
    # Products of inputs were shrunk by what chance may have made of them in 400 tokens.
    assert after < 0.05 * before


def test_correction_that_chance_explains_is_not_made() -> None:
    # What outputs lack has nothing to do with the inputs, of which there are hardly more than
    # columns: a fit explains most of it, and none of what comes next.
    weight, rounded = normal(4, 32), normal(40, 32)
    moments = Moments(weight)
    moments.add(rounded, rounded, behind=normal(40, 4, seed=7))
    _, wanted = moments.take()
    assert float((wanted - weight).norm()) < 0.2 * float(normal(40, 4, seed=7).std())


def test_fewer_tokens_than_columns_correct_nothing() -> None:
    moments = Moments(normal(4, 32))
    moments.add(normal(20, 32), normal(20, 32, seed=1))
    assert torch.equal(moments.take()[1], normal(4, 32))


def test_no_tokens_give_a_moment_that_can_be_factorized() -> None:
    second, weight = Moments(normal(4, 8)).take()
    assert torch.equal(weight, normal(4, 8))
    assert torch.equal(second, torch.diag(second.diagonal()))
    assert float(second.diagonal().min()) > 0


def test_products_that_chance_made_are_shrunk_and_true_ones_stay() -> None:
    x = normal(64, 32)
    apart = x.T @ x / 64
    before = apart.clone()
    shrink(apart, 64)
    assert torch.equal(apart.diagonal(), before.diagonal())
    assert float((apart - torch.diag(apart.diagonal())).norm()) < 0.2 * float(before.norm())
    joined = correlated(32)
    kept = shrink(joined.clone(), 1e6)
    torch.testing.assert_close(kept, joined, rtol=1e-3, atol=1e-3)


def test_sizes_that_differ_by_chance_are_evened_out_and_true_ones_stay() -> None:
    x = normal(16, 64)
    sizes, fourths = x.square().mean(0), x.square().square().mean(0)
    spread = float(sizes.std())
    assert float(even_out(sizes, fourths, 16).std()) < 0.4 * spread
    wide = normal(4000, 64) * torch.linspace(0.1, 3, 64)
    sizes, fourths = wide.square().mean(0), wide.square().square().mean(0)
    torch.testing.assert_close(even_out(sizes.clone(), fourths, 4000), sizes, rtol=0.05, atol=0.01)


def test_tokens_that_say_nothing_new_are_not_trusted() -> None:
    x = normal(100, 8)
    once, again = Moments(normal(4, 8)), Moments(normal(4, 8), novelty=0.1)
    once.add(x, x)
    again.add(x, x)
    assert (once.tokens, again.tokens) == (100, pytest.approx(10))


def test_shares_count_squared() -> None:
    weight, x = normal(4, 8), normal(5, 8)
    once, often = Moments(weight), Moments(weight)
    once.add(x, x, torch.full((5,), 2.0))
    often.add(2 * x, 2 * x)
    assert once.tokens == often.tokens == 5
    torch.testing.assert_close(once.take()[0], often.take()[0])


def test_tokens_of_unequal_shares_tell_less() -> None:
    moments, x = Moments(normal(4, 8)), normal(4, 8)
    moments.add(x, x, torch.tensor([1.0, 1, 0.1, 0.1]))
    assert 2 < moments.tokens < 2.1


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_factor_turned_in_small_pieces_is_the_factor_turned_at_once(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
    moment, order = root @ root.T + torch.eye(size), torch.arange(size)
    at_once = factorize(moment.clone(), order)
    monkeypatch.setattr(gptq, "_PIECE", 3)
    assert torch.equal(factorize(moment.clone(), order), at_once)
    torch.testing.assert_close(at_once @ at_once.T, moment, rtol=1e-5, atol=1e-5)
    assert torch.equal(at_once, at_once.triu())
