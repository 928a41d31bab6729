"""Planted faults that really run are caught, and the bundles they were planted in pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.canary.check import check
from lfm2_deploy.canary.judge import Verdict
from lfm2_deploy.demo import DEMO_MODEL
from runtimes import ort

from .faults import FAULTS, Fault, conv_state_of_padding, plant
from .local_faults import expert_swapped, expert_zeroed

BundleOf = Callable[..., Bundle]
# Only a mixture has a bias, and fp32 shows what int4 may hide.
CASES = [("moe", "int4"), ("moe", "fp32"), ("dense", "int8")]
# Nothing is right any more: these must not load.
GROSS = {
    "conv_state_zeroed", "conv_state_shifted", "gate_and_up_swapped", "overflowed_half",
    "saturated_int8", "not_a_number", "layers_swapped",
}  # fmt: skip


def _check(bundle: Bundle) -> Verdict:
    runtime = ort.load(bundle, threads=1)
    verdict, _ = check(bundle, runtime)
    return verdict


@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_healthy_bundle_passes(bundle_of: BundleOf, kind: str, precision: str) -> None:
    verdict = _check(bundle_of(kind, precision))
    assert verdict.outcome == "passed", verdict.reason
    # Well inside: another processor rounds otherwise.
    assert verdict.error < 0.6 * verdict.limit


@pytest.mark.parametrize("fault", [f for f in FAULTS.values() if f is not conv_state_of_padding])
@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_planted_fault_is_caught(
    bundle_of: BundleOf, tmp_path: Path, kind: str, precision: str, fault: Fault
) -> None:
    if fault.__name__ == "expert_bias_dropped" and kind == "dense":
        pytest.skip("a dense model has no experts")
    verdict = _check(plant(bundle_of(kind, precision), tmp_path / "faulty", fault))
    assert verdict.outcome in ("doubtful", "failed")
    assert verdict.reason
    if fault.__name__ in GROSS:
        assert verdict.outcome == "failed"


def test_dropped_bias_is_recognised(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("moe", "int4")
    verdict = _check(plant(bundle, tmp_path / "faulty", FAULTS["expert_bias_dropped"]))
    assert verdict.outcome == "failed" or "experts' bias" in verdict.reason


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model in int4: in a random mixture, rounding moves logits as one expert does."""
    return export(str(DEMO_MODEL), tmp_path_factory.mktemp("demo") / "int4", precision="int4")


def test_trained_model_passes(demo: Bundle) -> None:
    verdict = _check(demo)
    assert verdict.outcome == "passed", verdict.reason


@pytest.mark.parametrize("fault", [expert_zeroed(3, 0), expert_zeroed(7, 4), expert_swapped(4, 6)])
def test_fault_of_one_expert_is_caught(demo: Bundle, tmp_path: Path, fault: Fault) -> None:
    verdict = _check(plant(demo, tmp_path / "faulty", fault))
    assert verdict.outcome in ("doubtful", "failed")


def test_conv_state_of_padding_is_caught_where_rows_share_a_call(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the runtime sees by itself that rows disturb each other, and keeps them apart.
    monkeypatch.setattr(ort.OrtRuntime, "_rows_agree", lambda runtime, batch_size: True)
    bundle = bundle_of("dense", "fp32")
    assert _check(bundle).outcome == "passed"
    verdict = _check(plant(bundle, tmp_path / "faulty", conv_state_of_padding))
    assert verdict.outcome == "failed"
    assert "in a batch of 2" in verdict.reason
