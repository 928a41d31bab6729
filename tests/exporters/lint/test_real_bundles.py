"""Bundles of this package are clean of their own target's rules, and not of another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy import export
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.findings import LintReport
from lfm2_deploy.registry import find_lint

Export = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a model once for a target, in int4."""
    made: dict[tuple[str, str], Path] = {}

    def make(model: str, target: str) -> Path:
        if (model, target) not in made:
            folder = tmp_path_factory.mktemp("bundles") / "bundle"
            made[model, target] = export(model, folder, target=target, precision="int4").path
        return made[model, target]

    return make


def lint(path: Path, target: str) -> LintReport:
    """The report on a bundle's graphs for that target."""
    graphs = [one for one in open_bundle(path).manifest.graphs if one.device == "target"]
    report: LintReport = find_lint(target).lint([path / one.file for one in graphs])
    return report


@pytest.mark.parametrize("target", ["cpu", "npu", "directml", "webgpu"])
@pytest.mark.parametrize(
    "model",
    [str(DEMO_MODEL), "synthetic:tiny-moe", "synthetic:tiny-dense"],
    ids=["demo", "tiny-moe", "tiny-dense"],
)
def test_own_target_is_clean(make: Export, model: str, target: str) -> None:
    report = lint(make(model, target), target)
    assert report.faults == ()
    assert report.nodes > 50
    assert not any("types of" in line for line in report.unchecked)


def test_cpu_bundle_is_not_for_directml(make: Export) -> None:
    report = lint(make("synthetic:tiny-moe", "cpu"), "directml")
    found = {(one.rule, one.operator): len(one.nodes) for one in report.faults}
    assert found == {
        ("directml/not-registered", "com.microsoft:QMoE"): 3,
        ("directml/not-registered", "com.microsoft:CausalConvWithState"): 2,
        ("directml/not-registered", "com.microsoft:GatherBlockQuantized"): 1,
        ("directml/attention-ignored", "com.microsoft:GroupQueryAttention"): 2,
    }


def test_cpu_bundle_is_not_for_webgpu_as_the_plugin_places_it(make: Export) -> None:
    """What lint says equals what the plugin 0.4.0 did with this graph on lavapipe: QMoE failed
    when it ran, and these three operators were placed on the CPU, with 64-bit kernels on."""
    report = lint(make("synthetic:tiny-moe", "cpu"), "webgpu")
    found = {(one.rule, one.operator): len(one.nodes) for one in report.faults}
    assert found == {
        ("webgpu/qmoe-inputs", "com.microsoft:QMoE"): 3,
        ("webgpu/not-registered", "com.microsoft:FusedMatMul"): 3,
        ("webgpu/types", "ReduceMax"): 1,
        ("webgpu/types", "Squeeze"): 1,
    }
    int64 = [one for one in report.findings if one.rule == "webgpu/int64"]
    assert sum(len(one.nodes) for one in int64) == 16


def test_cpu_bundle_is_not_for_npu(make: Export) -> None:
    report = lint(make("synthetic:tiny-moe", "cpu"), "npu")
    assert {one.rule for one in report.faults} == {"npu/not-imported", "npu/dynamic-shape"}
