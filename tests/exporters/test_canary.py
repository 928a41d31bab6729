"""The canary that an export records: true, small, and the same at every export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from exporters.canary import record_canary
from exporters.quantize.plan import plan_tensors
from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy import export
from lfm2_deploy.bundle import CANARY, Bundle
from lfm2_deploy.canary.judge import USUAL
from lfm2_deploy.canary.record import Canary, digest_logits, read_canary
from lfm2_deploy.canary.run import run_canary
from lfm2_deploy.canary.script import choose_tokens, write_script
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint, ignore_progress
from lfm2_deploy.registry import find_runtime, find_runtime_of
from lfm2_deploy.weights import list_weights

BundleOf = Callable[..., Bundle]


def _round(path: Path, precision: str) -> StoredCheckpoint:
    checkpoint = open_checkpoint(str(path))
    plan = plan_tensors(list_weights(checkpoint.config), precision)  # type: ignore[arg-type]
    return StoredCheckpoint(checkpoint, plan)


def _record(rounded: StoredCheckpoint) -> Canary:
    return record_canary(rounded, write_script(choose_tokens(rounded), 0, 64), ignore_progress)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_recorded_logits_are_those_of_the_reference_on_rounded_weights(
    checkpoints: Mapping[str, Path], kind: str
) -> None:
    rounded = _round(checkpoints[kind], "int4")
    script = write_script(choose_tokens(rounded), 0, 64)
    canary = record_canary(rounded, script, ignore_progress)
    reference = find_runtime("reference")(rounded)
    for row in canary.rows:
        (logits,) = reference.open(1, row.length).score([[t for c in row.calls for t in c.tokens]])
        ends = np.cumsum([len(call.tokens) for call in row.calls]) - 1
        for call, end in zip(row.calls, ends, strict=True):
            digest = digest_logits(logits[end], canary.sampled_ids)
            assert call.expected.top_ids[0] == digest.top_ids[0]
            # Sums in another order, of logits around 10.
            np.testing.assert_allclose(call.expected.sampled, digest.sampled, atol=1e-4)


def test_mixture_has_the_signature_of_its_bias_in_all_and_in_each_layer(
    checkpoints: Mapping[str, Path],
) -> None:
    rounded = _round(checkpoints["moe"], "fp32")
    canary = _record(rounded)
    assert [s.fault for s in canary.signatures] == [
        "the experts' bias were left out",
        *(f"the experts' bias of layer {n} were left out" for n in rounded.config.moe_layers),
    ]
    assert {s.row for s in canary.signatures} == {"steps"}
    # Units are as fine as two digits.
    for signature in canary.signatures:
        assert max(abs(x) for change in signature.changes for x in change) == 99
    assert canary.coverage is not None
    assert canary.coverage.experts == 8 * len(rounded.config.moe_layers)
    assert canary.coverage.compared <= canary.coverage.run <= canary.coverage.experts
    assert canary.coverage.run == canary.coverage.experts


def test_dense_model_has_no_signature_and_no_experts(checkpoints: Mapping[str, Path]) -> None:
    canary = _record(_round(checkpoints["dense"], "fp32"))
    assert canary.signatures == ()
    assert canary.coverage is None


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_each_call_knows_how_far_rounding_moves_it(
    checkpoints: Mapping[str, Path], kind: str
) -> None:
    canary = _record(_round(checkpoints[kind], "int8"))
    calls = [call for row in canary.rows for call in row.calls]
    assert all(call.noise > 0 for call in calls)
    # The largest of several runs, and the median of all.
    assert sum(call.noise >= canary.noise for call in calls) > len(calls) / 2


# What healthy kernels are off by, of the canary's noise: no rounding of weights is forgotten, since
# int4 weights rounded otherwise would be off by more than the noise of 8-bit activations.
@pytest.mark.parametrize(
    ("target", "precision", "device", "most"),
    [
        ("cpu", "fp16", None, 0.005),
        ("cpu", "int4", None, 2.0),
        ("npu", "int4", "cpu", 0.25),
        ("npu", "int8", "cpu", 0.25),
        ("npu", "fp16", "cpu", 0.25),
        ("openvino-cpu", "fp16", None, 0.005),
        ("openvino-cpu", "int4", None, 2.0),
        ("webgpu", "fp16", "cpu", 0.25),
        ("webgpu", "int4", "cpu", 0.25),
        ("directml", "int8", "cpu", 0.25),
        ("directml", "int4", "cpu", 0.25),
    ],
)
def test_each_target_is_recorded_as_it_rounds(
    bundle_of: BundleOf, target: str, precision: str, device: str | None, most: float
) -> None:
    bundle = bundle_of("dense", precision, target)
    choice = {} if device is None else {"device": device}
    runtime = find_runtime_of(bundle)(bundle, threads=1, **choice)
    canary = read_canary(bundle.path, bundle.config.vocab_size, bundle.manifest.context_length)
    error = np.median([reading.error for reading in run_canary(canary, runtime)])
    assert error < most * canary.noise
    assert runtime.info.arithmetic in USUAL
    assert runtime.info.driver


def test_same_export_gives_the_same_small_canary(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    bundles = [export(str(checkpoints["moe"]), tmp_path / name) for name in "ab"]
    texts = [(bundle.path / CANARY).read_bytes() for bundle in bundles]
    assert texts[0] == texts[1]
    assert len(texts[0]) < 100_000
    assert CANARY in bundles[0].manifest.files


def test_export_without_canary_has_none(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    bundle = export(str(checkpoints["dense"]), tmp_path / "bundle", canary=False)
    assert CANARY not in bundle.manifest.files
    assert not (bundle.path / CANARY).exists()


def test_each_tensor_is_read_once_but_the_table(checkpoints: Mapping[str, Path]) -> None:
    read: list[str] = []

    @dataclasses.dataclass
    class Counting:
        base: Checkpoint

        def __getattr__(self, name: str) -> object:
            return getattr(self.base, name)

        def read(self, name: str) -> object:
            read.append(name)
            return self.base.read(name)

    rounded = _round(checkpoints["moe"], "fp32")
    rounded.base = Counting(rounded.base)  # type: ignore[assignment]
    record_canary(rounded, write_script(choose_tokens(rounded), 0, 64), ignore_progress)
    twice = {name for name in read if read.count(name) > 1}
    assert twice == {"model.embed_tokens.weight"}
