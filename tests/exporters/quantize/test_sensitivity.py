"""Measured costs are those of whole models, and bits go where they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from exporters.quantize.branches import Branch, measure_branches, round_trip
from exporters.quantize.budget import Unit, choose
from exporters.quantize.plan import TensorPlan
from exporters.quantize.sensitivity import fit_rows, measure_costs
from exporters.quantize.units import list_units
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.metrics import kl_divergence
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, FloatArray, ignore_progress
from lfm2_deploy.registry import find_runtime, find_target
from lfm2_deploy.weights import list_weights

ROWS = np.random.default_rng(0).integers(8, 500, (2, 48)).tolist()
KINDS = ["synthetic:tiny-dense", "synthetic:tiny-moe"]


@dataclass(frozen=True)
class Changed:
    """A checkpoint with some tensors rounded, or multiplied."""

    base: Checkpoint
    plans: Mapping[str, TensorPlan]
    factors: Mapping[str, FloatArray]

    @property
    def config(self) -> Lfm2Config:
        return self.base.config

    def read(self, name: str) -> FloatArray:
        weight = np.array(self.base.read(name)) * self.factors.get(name, np.float32(1))
        return round_trip(weight, self.plans[name]) if name in self.plans else weight


def list_all(checkpoint: Checkpoint, target: str = "cpu") -> tuple[Unit, ...]:
    return list_units(list_weights(checkpoint.config), find_target(target))


def score(checkpoint: Checkpoint) -> FloatArray:
    session = find_runtime("reference")(checkpoint).open(len(ROWS), len(ROWS[0]))
    return np.concatenate(session.score(ROWS))


@pytest.mark.parametrize("name", KINDS)
def test_a_branch_diverges_as_a_whole_model_with_that_unit_rounded(name: str) -> None:
    checkpoint = open_checkpoint(name)
    units = list_all(checkpoint)
    branches = [Branch(unit.layer, unit.kind, unit.options[0].plans) for unit in units]
    found = measure_branches(checkpoint, branches, ROWS, ignore_progress)
    exact = score(checkpoint)
    for branch, divergence in zip(branches, found, strict=True):
        whole = kl_divergence(exact, score(Changed(checkpoint, branch.plans, {}))).mean()
        # Float32 log-probabilities of several hundred tokens, and sums in another order.
        assert divergence == pytest.approx(whole, rel=1e-3, abs=1e-6)
    assert min(found) > 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_a_branch_that_rounds_nothing_does_not_diverge(name: str) -> None:
    checkpoint = open_checkpoint(name)
    last = checkpoint.config.num_hidden_layers - 1
    branches = [Branch(0, "mixer", {}), Branch(last, "feed_forward", {})]
    rounded = list_all(checkpoint)[1].options[0].plans
    found = measure_branches(
        checkpoint, [*branches, Branch(0, "mixer", rounded)], ROWS, ignore_progress
    )
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-6)
    assert found[2] > 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_costs_that_follow_are_near_measured_ones(name: str) -> None:
    checkpoint = open_checkpoint(name)
    units = measure_costs(checkpoint, list_all(checkpoint), ROWS, ignore_progress)
    larger = [
        (unit, option) for unit in units for option in unit.options[1:] if "4 bits" in option.label
    ]
    branches = [Branch(unit.layer, unit.kind, option.plans) for unit, option in larger]
    measured = measure_branches(checkpoint, branches, ROWS, ignore_progress)
    assert larger
    for (_, option), cost in zip(larger, measured, strict=True):
        # 96 tokens: a few decide. On more, and a trained model, 9 % (module docstring).
        assert option.cost == pytest.approx(cost, rel=0.5)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_layer_that_rounding_hurts_gets_more_bits(layer: int) -> None:
    checkpoint = open_checkpoint("synthetic:tiny-moe")
    units = list_all(checkpoint)
    place = next(n for n, u in enumerate(units) if (u.layer, u.kind) == (layer, "mixer"))
    plain = measure_costs(checkpoint, units, ROWS, ignore_progress)
    # One weight in 32 that is 20 times as large: steps are as long, and the others drown.
    spikes = np.where(np.arange(1024) % 32, 1, 20).astype(np.float32)
    widths = {w.name: w.shape[-1] for w in list_weights(checkpoint.config)}
    spiked = {name: spikes[: widths[name]] for name in units[place].options[0].plans}
    planted = measure_costs(Changed(checkpoint, {}, spiked), units, ROWS, ignore_progress)
    # It gets 8 bits at sizes that give it 4 where nothing is planted.
    assert find_size_for_8_bits(planted, place) < find_size_for_8_bits(plain, place) - 20_000


def find_size_for_8_bits(units: tuple[Unit, ...], place: int) -> int:
    """The smallest size, in steps of 2,000 bytes, that gives a unit 8 bits."""
    smallest = sum(unit.options[0].size_bytes for unit in units)
    largest = sum(unit.options[-1].size_bytes for unit in units)
    sizes = range(smallest, largest + 2000, 2000)
    return next(size for size in sizes if "8 bits" in choose(units, size).options[place].label)


def test_rows_are_left_out_and_then_cut_where_memory_does_not_hold_them() -> None:
    rows = [[7] * 256, [8] * 256, [9] * 256]
    assert fit_rows(rows, branches=33, hidden_size=1024) == rows
    assert fit_rows(rows, branches=81, hidden_size=2048) == rows
    assert fit_rows(rows, branches=161, hidden_size=2048) == rows[:2]
    assert fit_rows(rows, branches=801, hidden_size=2048) == [[7] * 108]
