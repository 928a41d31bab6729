"""What rounding takes from weights, measured on the bytes that are stored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from exporters.options import ExportOptions
from exporters.passes.qnn.weights import encode_turned, measure_turned
from exporters.passes.weights import encode_rows, encode_rows_half
from exporters.quantize.losses import Sums, list_errors, measure_packed, relate
from exporters.quantize.plan import Precision, TensorPlan
from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy import api
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.registry import find_target

MODEL = "synthetic:tiny-moe"
TARGETS = ["cpu", "npu", "openvino-cpu", "webgpu", "directml", "qnn"]


def test_sums_are_as_by_hand() -> None:
    # Levels 9 and 6 of scale 0.5 stand for 0.5 and -1.
    packed, scales = np.array([[0x69]], np.uint8), np.array([[0.5]], np.float32)
    weight = np.array([[0.75, -1.0]], np.float32)
    assert measure_packed(weight, packed, scales, 4) == Sums(0.0625, 1.5625)
    assert relate(Sums(0.0625, 1.5625)) == 0.2


@pytest.mark.parametrize("bits", [4, 8])
def test_stored_numbers_are_decoded_whatever_their_layout(bits: int) -> None:
    # 40 pieces of rows.
    weight = np.random.default_rng(bits).standard_normal((40 * 64, 1024)).astype(np.float32)
    packed, scales = encode_rows(weight, bits, 32)
    whole = measure_packed(weight, packed, scales, bits)
    # Sums of the same squares in another order, in float64.
    assert whole.whole == pytest.approx(float(np.square(weight, dtype=np.float64).sum()), rel=1e-12)
    expected = {4: 0.08, 8: 0.005}[bits]
    # Of normal weights; how much exactly depends on the draw by a few percent.
    assert relate(whole) == pytest.approx(expected, rel=0.15)
    half = measure_packed(weight, *encode_rows_half(weight, bits, 32), bits)
    # float16 scales are off by 2^-11 of a step at most.
    assert relate(half) == pytest.approx(relate(whole), rel=0.01)
    turned = relate(measure_turned(weight, *encode_turned(weight, bits), bits))
    # One scale a row is coarser than one for each 32 of it.
    assert relate(whole) < turned < 3 * relate(whole)


def test_zeros_lose_nothing() -> None:
    zeros = np.zeros((2, 32), np.float32)
    assert relate(measure_packed(zeros, *encode_rows(zeros, 4, 32), 4)) == 0.0


def test_parts_of_a_tensor_add_up_and_experts_share_a_line() -> None:
    plan = {
        f"model.layers.0.feed_forward.experts.{e}.w1.weight": TensorPlan(4, 32, "")
        for e in range(2)
    }
    first, second = plan
    found = [{second: Sums(4.0, 100.0)}, {first: Sums(0.0, 25.0)}, {}, {first: Sums(0.0, 75.0)}]
    (line,) = list_errors(found, plan)
    assert line.name == "model.layers.0.feed_forward.experts.*.w1.weight"
    # 0 and 0.2: the root of half of 0.04.
    assert (line.error, line.largest) == (0.1414, 0.2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_every_target_measures_what_it_stores(
    tmp_path: Path, target: str, precision: Precision
) -> None:
    bundle = api.export(
        MODEL, tmp_path / "out", target=target, precision=precision, context_length=128
    )
    checkpoint, found = open_checkpoint(MODEL), find_target(target)
    plan = ExportOptions(found, precision, 128).plan_weights(checkpoint.config)
    # What the canary takes for stored, decided by other code.
    stored = StoredCheckpoint(checkpoint, plan, found.rounding(precision))
    errors: dict[str, list[float]] = {}
    for name, entry in plan.items():
        if entry.is_quantized:
            exact = checkpoint.read(name).astype(np.float64)
            error = float(np.linalg.norm(stored.read(name) - exact) / np.linalg.norm(exact))
            errors.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.*.", name), []).append(error)
    record = bundle.manifest.rounding
    assert record is not None
    assert [line.name for line in record.weights] == list(errors)
    for line in record.weights:
        mean = float(np.sqrt(np.mean(np.square(errors[line.name]))))
        # Four digits are kept: half of the last one is 5e-4 where the first is 1.
        assert line.error == pytest.approx(mean, rel=5.1e-4)
        assert line.largest == pytest.approx(max(errors[line.name]), rel=5.1e-4)
