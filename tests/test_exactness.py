"""The same logits as transformers, however a prompt is cut, batched, undone or resumed."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes.ort_session
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import FloatArray, Runtime, Session
from lfm2_deploy.model.layers import CachedAttention, CausalConv
from lfm2_deploy.model.moe import Experts, Router
from lfm2_deploy.registry import find_runtime

from .logits import decode_row, generate, make_rows, relative_error, run_transformers

RuntimeOf = Callable[[str, str], Runtime]
TrueLogits = Callable[[str, Sequence[int]], FloatArray]

KINDS = ["dense", "moe", "moe_fused"]
# A runtime is named "reference", or by the precision that ONNX Runtime runs.
RUNTIMES = ["reference", "fp32", "fp16", "int8", "int4"]
CASES = [(kind, name) for kind in ("dense", "moe") for name in RUNTIMES]
# OpenVINO's targets, on its CPU device.
OPENVINO = [f"{target}/{p}" for target in ("openvino-cpu", "npu") for p in ("fp32", "fp16", "int4")]
CASES += [(kind, name) for kind in ("dense", "moe") for name in OPENVINO]
EXACT = ["reference", "fp32", "openvino-cpu/fp32", "npu/fp32"]
LENGTHS = (1, 2, 3, 7, 20)
CAPACITY = 64

# All three are shares of the largest logit; a part left out moves logits by more than 1e-1.
# Two float32 implementations sum in different orders: at most 3e-6 over these six layers.
AGAINST_TRANSFORMERS = 1e-4
# One implementation, whose kernels for one row and for many sum in different orders: at
# most 4e-6 here.
FLOAT_ORDER = 2e-5
# int8 and int4 round activations to 8 bits, so a difference of the last float32 bit can,
# rarely, move one by a whole step of 1/127, which later layers amplify: at most 1e-2 here.
ROUNDED_ACTIVATIONS = 3e-2


# An NPU's states are float16, so tokens of the same call are seen more exactly than those of
# earlier ones: 8e-4 seen.
ROUNDED_STATES = 3e-3


def tolerance_of(name: str) -> float:
    if name in ("npu/fp16", "npu/int4"):
        return ROUNDED_STATES
    name = name.rpartition("/")[2]
    return ROUNDED_ACTIVATIONS if name in ("int8", "int4") else FLOAT_ORDER


@pytest.fixture(scope="session")
def runtime_of(checkpoints: Mapping[str, Path], bundle_of: Any, open_ort: Any) -> RuntimeOf:
    """Load a runtime of a kind of model, once."""

    @functools.cache
    def load(kind: str, name: str) -> Runtime:
        if name == "reference":
            runtime: Runtime = find_runtime(name)(open_checkpoint(str(checkpoints[kind])))
            return runtime
        if "/" in name:
            target, _, precision = name.partition("/")
            bundle = bundle_of(kind, precision, target)
            ran_on_cpu: Runtime = find_runtime("openvino")(bundle, threads=1, device="cpu")
            return ran_on_cpu
        opened: Runtime = open_ort(bundle_of(kind, name))
        return opened

    return load


@pytest.fixture(scope="session")
def true_logits(transformers_models: Mapping[str, Any]) -> TrueLogits:
    """Logits of a whole row by transformers, without a cache."""
    return lambda kind, row: run_transformers(transformers_models[kind], row)


# Against transformers


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(
    kind: str, name: str, runtime_of: RuntimeOf, true_logits: TrueLogits
) -> None:
    (row,) = make_rows(48)
    scored = runtime_of(kind, name).open(1, CAPACITY).score([row])[0]
    assert relative_error(scored, true_logits(kind, row)) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_those_of_transformers(
    kind: str, name: str, runtime_of: RuntimeOf, true_logits: TrueLogits
) -> None:
    (prompt,) = make_rows(20)
    tokens = generate(runtime_of(kind, name), prompt, 64)
    logits = true_logits(kind, prompt + tokens)[len(prompt) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    # A model that repeats itself would make this an easy test.
    assert len(set(tokens)) > 32


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_fp16_equals_transformers_on_rounded_weights(
    kind: str, runtime_of: RuntimeOf, transformers_models: Mapping[str, Any]
) -> None:
    rounded = copy.deepcopy(transformers_models[kind])
    kept = ("norm.weight", "conv.conv.weight", "gate.weight")
    for name, weight in rounded.named_parameters():
        if not name.endswith(kept):
            weight.data = weight.data.half().float()
    (row,) = make_rows(48)
    scored = runtime_of(kind, "fp16").open(1, CAPACITY).score([row])[0]
    assert relative_error(scored, run_transformers(rounded, row)) < AGAINST_TRANSFORMERS


def test_fused_layout_gives_the_same_bundle(bundle_of: Any) -> None:
    separate, fused = (bundle_of(kind, "fp32").manifest.files for kind in ("moe", "moe_fused"))
    for name in ("model.onnx", "model.onnx.data"):
        assert separate[name].sha256 == fused[name].sha256


def forget_expert_bias(module: torch.nn.Module) -> None:
    if isinstance(module, Router) and module.expert_bias is not None:
        module.expert_bias.zero_()


def forget_routed_scaling(module: torch.nn.Module) -> None:
    if isinstance(module, Experts):
        module.moe = dataclasses.replace(module.moe, routed_scaling_factor=1.0)


def forget_oldest_column(module: torch.nn.Module) -> None:
    if isinstance(module, CausalConv):
        module.weight[..., 0] = 0


def mistake_rope_theta(module: torch.nn.Module) -> None:
    if isinstance(module, CachedAttention):
        module.rope_theta = 10_000.0


@pytest.mark.parametrize(
    "damage", [forget_expert_bias, forget_routed_scaling, forget_oldest_column, mistake_rope_theta]
)
def test_damaged_part_moves_logits_far_beyond_the_tolerance(
    damage: Callable[[torch.nn.Module], None],
    checkpoints: Mapping[str, Path],
    true_logits: TrueLogits,
) -> None:
    damaged = find_runtime("reference")(open_checkpoint(str(checkpoints["moe"])))
    damaged.model.apply(damage)
    (row,) = make_rows(48)
    scored = damaged.open(1, CAPACITY).score([row])[0]
    assert relative_error(scored, true_logits("moe", row)) > 100 * AGAINST_TRANSFORMERS


# Prompts of any length, in any pieces


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("length", [1, 2])
def test_prompt_shorter_than_the_conv_goes_on_as_in_transformers(
    kind: str, name: str, length: int, runtime_of: RuntimeOf, true_logits: TrueLogits
) -> None:
    (row,) = make_rows(8)
    runtime = runtime_of(kind, name)
    assert length < runtime.config.conv_L_cache
    session = runtime.open(1, CAPACITY)
    stepped = [session.prefill([row[:length]]), decode_row(session, row[length:])]
    expected = true_logits(kind, row)[length - 1 :]
    assert relative_error(np.concatenate(stepped), expected) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_prompt_longer_than_a_chunk_equals_transformers(
    kind: str, runtime_of: RuntimeOf, true_logits: TrueLogits
) -> None:
    chunk = runtimes.ort_session.PREFILL_CHUNK
    rows = make_rows(chunk + 90, chunk + 1, chunk, 5)
    session = runtime_of(kind, "fp32").open(len(rows), chunk + 100)
    last = session.prefill(rows)
    stepped = session.decode([9, 10, 11, 12])
    for number, row in enumerate(rows):
        expected = true_logits(kind, [*row, 9 + number])
        actual = np.stack([last[number], stepped[number]])
        assert relative_error(actual, expected[-2:]) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("chunk", range(1, 10))
@pytest.mark.parametrize(("kind", "name"), [c for c in CASES if c[1] in RUNTIMES[1:]])
def test_prefill_in_chunks_equals_prefill_in_one_piece(
    kind: str, name: str, chunk: int, runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, rows = runtime_of(kind, name), make_rows(*LENGTHS)
    whole, chunked, scored = (runtime.open(len(rows), CAPACITY) for _ in range(3))
    expected = whole.score(rows)
    monkeypatch.setattr(runtimes.ort_session, "PREFILL_CHUNK", chunk)
    last, every = chunked.prefill(rows), scored.score(rows)
    assert chunked.lengths == scored.lengths == whole.lengths == LENGTHS
    tolerance = tolerance_of(name)
    for number, row in enumerate(expected):
        assert relative_error(last[number], row[-1]) < tolerance
        assert relative_error(every[number], row) < tolerance
    tokens = [9, 10, 11, 12, 13]
    assert relative_error(chunked.decode(tokens), whole.decode(tokens)) < tolerance


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_score_equals_prefill_and_decode(kind: str, name: str, runtime_of: RuntimeOf) -> None:
    runtime, (row,) = runtime_of(kind, name), make_rows(24)
    stepped, scored, prefilled = (runtime.open(1, CAPACITY) for _ in range(3))
    one_by_one = np.concatenate([stepped.prefill([row[:1]]), decode_row(stepped, row[1:])])
    every, last = scored.score([row])[0], prefilled.prefill([row])[0]
    tolerance = tolerance_of(name)
    assert relative_error(every, one_by_one) < tolerance
    assert relative_error(last, every[-1]) < tolerance
    assert scored.lengths == prefilled.lengths == stepped.lengths == (24,)
    assert relative_error(scored.decode([9]), stepped.decode([9])) < tolerance


# States that are emptied and put back


@pytest.mark.parametrize("calls", [1, 2], ids=["odd", "even"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_reset_session_equals_a_fresh_one(
    kind: str, name: str, calls: int, runtime_of: RuntimeOf
) -> None:
    runtime, rows = runtime_of(kind, name), make_rows(3, 20)
    used, fresh = runtime.open(2, CAPACITY), runtime.open(2, CAPACITY)
    for _ in range(calls):
        used.prefill(make_rows(25, 12))
    used.reset()
    assert used.lengths == (0, 0)
    np.testing.assert_array_equal(used.prefill(rows), fresh.prefill(rows))
    for tokens in ([9, 10], [None, 11], [12, 13]):
        np.testing.assert_array_equal(used.decode(tokens)[1], fresh.decode(tokens)[1])


def go_on(session: Session) -> FloatArray:
    steps = [session.decode(tokens) for tokens in ([9, 10], [11, 12], [13, 14])]
    return np.stack([*steps, session.prefill([[15], [16, 17, 18]])])


@pytest.mark.parametrize("calls", [1, 2], ids=["odd", "even"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_restored_session_goes_on_bit_for_bit(
    kind: str, name: str, calls: int, runtime_of: RuntimeOf
) -> None:
    session = runtime_of(kind, name).open(2, CAPACITY)
    session.prefill(make_rows(2, 20))
    snapshot = session.snapshot()
    expected = go_on(session)
    for _ in range(calls):
        session.prefill(make_rows(9, 1))
    session.restore(snapshot)
    assert session.lengths == snapshot.lengths == (2, 20)
    np.testing.assert_array_equal(go_on(session), expected)
    session.reset()
    session.restore(snapshot)
    np.testing.assert_array_equal(go_on(session), expected)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_snapshot_restored_in_another_session_goes_on_bit_for_bit(
    kind: str, name: str, runtime_of: RuntimeOf
) -> None:
    first, second = (runtime_of(kind, name).open(2, CAPACITY) for _ in range(2))
    first.prefill(make_rows(2, 20))
    second.prefill(make_rows(30, 4))
    second.restore(first.snapshot())
    np.testing.assert_array_equal(go_on(second), go_on(first))


# Rows of one batch


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ragged_batch_equals_single_rows(kind: str, name: str, runtime_of: RuntimeOf) -> None:
    runtime, rows = runtime_of(kind, name), make_rows(*LENGTHS)
    batch = runtime.open(len(rows), CAPACITY)
    singles = [runtime.open(1, CAPACITY) for _ in rows]
    together = batch.prefill(rows)
    apart = [single.prefill([row])[0] for single, row in zip(singles, rows, strict=True)]
    for step in range(24):
        # Row 1 ends early; row 3 pauses, and goes on as if it had not.
        active = [n for n in range(5) if (n != 1 or step < 10) and (n != 3 or not 5 < step < 12)]
        assert_same(kind, name, together[active], np.stack([apart[n] for n in active]))
        tokens = [int(logits.argmax()) for logits in apart]
        together_after = batch.decode([t if n in active else None for n, t in enumerate(tokens)])
        for number in active:
            together[number] = together_after[number]
            apart[number] = singles[number].decode([tokens[number]])[0]
    assert batch.lengths == tuple(single.lengths[0] for single in singles) == (25, 12, 27, 25, 44)


def assert_same(kind: str, name: str, together: FloatArray, apart: FloatArray) -> None:
    if name != "reference":
        # Rows share a session only where that was seen to change no bit.
        np.testing.assert_array_equal(together, apart)
        return
    # torch's products order their sums by the number of rows.
    np.testing.assert_array_equal(together.argmax(-1), apart.argmax(-1))
    assert relative_error(together, apart) < tolerance_of(name)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ragged_rows_score_as_single_rows(kind: str, name: str, runtime_of: RuntimeOf) -> None:
    runtime, rows = runtime_of(kind, name), make_rows(*LENGTHS)
    for row, together in zip(rows, runtime.open(5, CAPACITY).score(rows), strict=True):
        assert_same(kind, name, together, runtime.open(1, CAPACITY).score([row])[0])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_step_without_tokens_changes_nothing(kind: str, name: str, runtime_of: RuntimeOf) -> None:
    idle, steady = (runtime_of(kind, name).open(2, CAPACITY) for _ in range(2))
    for session in (idle, steady):
        session.prefill(make_rows(2, 20))
    idle.decode([None, None])
    assert idle.lengths == (2, 20)
    np.testing.assert_array_equal(go_on(idle), go_on(steady))
