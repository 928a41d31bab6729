"""Errors of states, and where they begin: by hand, and with faults planted in a model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.result import StateError
from lfm2_deploy.compare.scorer import Request, RuntimeScorer, States
from lfm2_deploy.compare.states import compare_states, find_start, relative_error
from lfm2_deploy.contracts import ignore_progress
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.states import list_states

ROWS = [list(range(1, 9)), list(range(1, 41))]


def test_relative_error_is_as_by_hand() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(0.2)
    zeros = np.zeros(2)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, np.ones(2)) == 1
    assert math.isnan(relative_error(zeros, np.zeros(3)))


def errors(*values: float) -> list[StateError]:
    return [StateError(layer, "conv", value) for layer, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "layer"),
    [
        ((0.02, 0.03, 0.05, 0.08), None),
        ((0.02, 0.03, 0.5, 0.6), 2),
        ((0.9, 0.9, 0.9), 0),
        # An exact first layer is no measure for what float32 rounds after it.
        ((0.0, 5e-7, 2e-6, 3e-6), None),
        ((0.0, 0.0, 1e-3, 1e-3), 2),
        ((0.02, math.nan, 0.02), 1),
    ],
)
def test_error_starts_where_it_jumps(values: tuple[float, ...], layer: int | None) -> None:
    found = find_start(errors(*values), most_at_first=0.3)
    assert (None if found is None else found.layer) == layer


def test_first_layer_of_fp32_is_held_to_fp32() -> None:
    assert find_start(errors(0.01, 0.01), most_at_first=1e-4) is not None


def read_states(folder: Path) -> list[States]:
    scorer = RuntimeScorer(
        runtime := find_runtime("reference")(open_checkpoint(str(folder))),
        list_states(runtime.config),
        "",
    )
    requests = [Request(row, len(row) - 1, states=True) for row in ROWS]
    states = [scored.states for scored in scorer.score(requests, ignore_progress)]
    assert all(states)
    return [found for found in states if found is not None]


@pytest.mark.parametrize(
    ("tensor", "layer", "kinds"),
    [
        ("layers.3.conv.in_proj.weight", 3, ("conv",)),
        ("layers.4.self_attn.k_proj.weight", 4, ("key",)),
        ("layers.4.self_attn.v_proj.weight", 4, ("value",)),
        # What a layer does after its own states shows in the next.
        ("layers.1.self_attn.out_proj.weight", 2, ("conv",)),
        ("layers.2.conv.conv.weight", 3, ("conv",)),
        ("layers.0.feed_forward.w1.weight", 1, ("key", "value")),
    ],
)
def test_planted_fault_is_found_where_it_shows(
    checkpoints: Mapping[str, Path], tmp_path: Path, tensor: str, layer: int, kinds: tuple[str, ...]
) -> None:
    faulty = shutil.copytree(checkpoints["dense"], tmp_path / "faulty")
    tensors = load_file(faulty / "model.safetensors")
    name = f"model.{tensor}"
    tensors[name] = np.roll(tensors[name], 1, axis=0)
    save_file(tensors, faulty / "model.safetensors", {"format": "pt"})
    config = open_checkpoint(str(faulty)).config
    pairs = zip(ROWS, read_states(checkpoints["dense"]), read_states(faulty), strict=True)
    found = compare_states([(len(r), a, b) for r, a, b in pairs], config, ["fp32"])
    assert found.start is not None
    assert found.start.layer == layer
    assert found.start.kind in kinds
    assert f"layer {layer}" in found.start.advice


def test_sound_copy_shows_no_start(checkpoints: Mapping[str, Path]) -> None:
    config = open_checkpoint(str(checkpoints["dense"])).config
    states = read_states(checkpoints["dense"])
    rows = [(len(row), a, a) for row, a in zip(ROWS, states, strict=True)]
    found = compare_states(rows, config, ["fp32"])
    assert found.start is None
    assert [row.tokens for row in found.rows] == [8, 40]
    # Two attention layers of two states, and four convolutions.
    assert len(found.rows[0].errors) == 8
    assert all(error.error == 0 for error in found.rows[0].errors)


def test_fault_after_the_last_state_is_found_in_the_logits(
    checkpoints: Mapping[str, Path],
) -> None:
    config = open_checkpoint(str(checkpoints["dense"])).config
    states = read_states(checkpoints["dense"])
    rows = [(len(row), a, a) for row, a in zip(ROWS, states, strict=True)]
    found = compare_states(rows, config, ["fp32"], logits_error=0.3).start
    assert found is not None
    last = config.num_hidden_layers - 1
    assert (found.layer, found.kind, found.error) == (last, "logits", 0.3)
    # Float32's own rounding is none.
    assert compare_states(rows, config, ["fp32"], logits_error=1e-6).start is None


@pytest.mark.parametrize(("precision", "told"), [("fp32", False), ("int8", True)])
def test_routing_is_named_as_a_cause_where_weights_are_rounded(
    checkpoints: Mapping[str, Path], precision: str, told: bool
) -> None:
    config = open_checkpoint(str(checkpoints["moe"])).config
    states = read_states(checkpoints["moe"])
    last = list_states(config)[-1].input
    rows = [(len(r), a, {**a, last: -a[last]}) for r, a in zip(ROWS, states, strict=True)]
    found = compare_states(rows, config, ["fp32", precision]).start
    assert found is not None
    assert ("other experts" in found.advice) is told


def astray(states: States, name: str) -> States:
    """States of a row whose last tokens went to other experts: one convolution is all wrong."""
    return {**states, name: -states[name]}


def test_one_row_astray_is_a_fault_of_all_but_rounded_mixtures(
    checkpoints: Mapping[str, Path],
) -> None:
    config = open_checkpoint(str(checkpoints["moe"])).config
    states = read_states(checkpoints["moe"])[0]
    name = [spec.input for spec in list_states(config) if spec.kind == "conv"][-1]
    rows = [(8, states, states), (8, states, astray(states, name)), (8, states, states)]
    assert compare_states(rows, config, ["fp32", "int8"]).start is None
    assert compare_states(rows, config, ["fp32", "fp32"]).start is not None
    dense = replace(config, moe=None)
    assert compare_states(rows, dense, ["fp32", "int8"]).start is not None
    # More than half: this is no accident.
    found = compare_states(rows[1:2] * 2 + rows[:1], config, ["fp32", "int8"])
    assert found.start is not None
    assert len(found.rows) == 1


def test_state_that_is_not_finite_in_one_row_is_a_fault(checkpoints: Mapping[str, Path]) -> None:
    config = open_checkpoint(str(checkpoints["moe"])).config
    states = read_states(checkpoints["moe"])[0]
    name = list_states(config)[-1].input
    broken = {**states, name: np.full_like(states[name], np.nan)}
    rows = [(8, states, theirs) for theirs in (states, broken, states)]
    found = compare_states(rows, config, ["fp32", "int8"]).start
    assert found is not None
    assert found.layer == list_states(config)[-1].layer
