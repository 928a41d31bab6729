"""What each target stores of rounded weights means exactly those weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.lowering import build_drafts
from exporters.options import ExportOptions
from exporters.passes.qnn.weights import encode_turned
from exporters.quantize.layerwise import Job
from exporters.quantize.methods import METHODS
from exporters.quantize.pack import unpack
from exporters.quantize.plan import TensorPlan
from exporters.quantize.rounded import RoundedCheckpoint, round_checkpoint
from exporters.stitch import BlockTracer
from exporters.targets.target import Target
from exporters.weight_book import WeightJob
from lfm2_deploy.calibration_text import CalibrationText
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import ignore_progress
from lfm2_deploy.registry import find_target

Array = NDArray[Any]
MODEL = open_checkpoint("synthetic:tiny-moe")
ROWS = [[1, *range(row + 8, 8 + 30 * (row + 1), row + 1)] for row in range(2)]
TEXT = CalibrationText("made up", "00", ROWS)


def make_rounded(options: ExportOptions, folder: Path) -> RoundedCheckpoint:
    # The fastest of those that give grids; the store is the same for all.
    plan = options.plan_weights(MODEL.config)
    job = Job(MODEL, plan, METHODS["awq"], [row[:30] for row in ROWS], ignore_progress)
    return round_checkpoint(job, TEXT, folder)[0]


def decode(levels: Array, scales: Array, bits: int, signed: bool) -> Array:
    """Values, float64, in the order they are stored."""
    if bits == 4:
        levels = unpack(levels.view(np.uint8), 4)
        numbers = levels.astype(np.int16) - 8
        if signed:
            numbers = np.where(levels > 7, levels.astype(np.int16) - 16, levels)
    else:
        numbers = levels.astype(np.int16) - (0 if signed else 128)
    return numbers.reshape(scales.size, -1) * scales.reshape(-1, 1).astype(np.float64)


def decode_job(job: WeightJob, checkpoint: RoundedCheckpoint, bits: int, signed: bool) -> Array:
    arrays = job.encode(*(checkpoint.read(name) for name in job.sources))
    levels = [array for array in arrays if array.dtype in (np.uint8, np.int8)]
    scales = [array for array in arrays if array.dtype in (np.float32, np.float16)]
    pairs = zip(levels, scales, strict=True)
    return np.concatenate([decode(*pair, bits, signed).ravel() for pair in pairs])


def list_calibrated(
    target: Target, options: ExportOptions, trace: BlockTracer
) -> Sequence[tuple[WeightJob, int]]:
    plan = options.plan_weights(MODEL.config)
    drafts = build_drafts(MODEL.config, options, trace)
    jobs = next(iter(drafts.values())).book.jobs
    return [
        (job, plan[job.sources[0]].bits)
        for job in jobs
        if job.sources and plan[job.sources[0]].rounding == "recover"
    ]


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("name", ["cpu", "webgpu", "directml", "npu", "openvino-cpu"])
def test_target_stores_rounded_weights_exactly(
    name: str, precision: Any, trace_once: BlockTracer, tmp_path: Path
) -> None:
    target = find_target(name)
    options = ExportOptions(target, precision, 512, quantize="gptq")
    rounded = make_rounded(options, tmp_path / "store")
    jobs = list_calibrated(target, options.fit_chunk(512), trace_once)
    assert len(jobs) > 10
    seen: dict[tuple[str, ...], list[Array]] = {}
    for job, bits in jobs:
        found = decode_job(job, rounded, bits, signed=target.runtime == "openvino")
        seen.setdefault(job.sources, []).append(found)
    for sources, parts in seen.items():
        # Parts of one matrix are jobs of their own where a target cuts it.
        values = np.sort(np.concatenate(parts))
        exact = np.concatenate([rounded.read(name).ravel() for name in sources])
        np.testing.assert_array_equal(values, np.sort(exact).astype(np.float64))


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_qnn_stores_rounded_weights_exactly(precision: Any, tmp_path: Path) -> None:
    options = ExportOptions(find_target("qnn"), precision, 512, quantize="gptq")
    plan = options.plan_weights(MODEL.config)
    rounded, count = make_rounded(options, tmp_path / "store"), 0
    for name, entry in plan.items():
        if entry.rounding != "recover":
            continue
        assert entry.narrow_range
        weight = rounded.read(name)
        levels, scales = encode_turned(weight, entry.bits, entry.rounding)
        assert (scales > 0).all()
        values = decode(levels, np.ones(1), entry.bits, signed=True).reshape(weight.T.shape)
        np.testing.assert_array_equal(values * scales, weight.T.astype(np.float64))
        assert np.abs(values).max() < 1 << (entry.bits - 1)
        count += 1
    assert count > 10


def test_plan_says_how_levels_are_found() -> None:
    cpu = find_target("cpu")
    for method, rounding in (("rtn", "nearest"), ("search", "search"), ("gptq", "recover")):
        plan = ExportOptions(cpu, "int4", quantize=method).plan_weights(MODEL.config)
        assert plan["model.layers.0.conv.in_proj.weight"].rounding == rounding
        assert plan["model.embed_tokens.weight"].rounding == (
            "nearest" if method == "rtn" else "search"
        )
        assert not plan["model.layers.0.operator_norm.weight"].is_quantized
    assert replace(ExportOptions(cpu, "int4")).method.name == "search"


def test_changed_plan_keeps_what_the_target_cannot_store_out() -> None:
    options = ExportOptions(find_target("qnn"), "int4", quantize="gptq")
    name = "model.layers.0.conv.in_proj.weight"
    width = MODEL.read(name).shape[1]
    changed = replace(options, changed={name: TensorPlan(8, width, "sensitive")})
    entry = changed.plan_weights(MODEL.config)[name]
    assert (entry.bits, entry.narrow_range, entry.rounding) == (8, True, "recover")
