"""`export --target npu`, and `compile`: what a user without an NPU sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import runtimes.npu_compiler.bundles
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from runtimes.npu_compiler.compiler import Verdict


@pytest.fixture(scope="module")
def npu_bundle(run: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npu") / "bundle"
    result = run("export", "synthetic:tiny-dense", path, "--target", "npu", "--chunk", "16")
    assert result.exit_code == 0, result.stderr
    return path


class FakeCompiler:
    """Takes what it is given, but refuses prompts for one platform."""

    def compile(self, graph: Path, platform: str, blob: Path) -> Verdict:
        if graph.name == "prefill.onnx" and platform == "3720":
            raise BundleError(f"Intel's NPU compiler refuses {graph.name} for platform 3720: no")
        blob.write_bytes(b"blob")
        return Verdict(platform, "8.4", "2026.4.1", 1500.0, 4, 2.0)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bundles", "compiler"):
        monkeypatch.setattr(f"runtimes.npu_compiler.{module}.find_compiler", FakeCompiler)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeUnavailableError("there is no NPU compiler here: it needs wine")

    for module in ("bundles", "compiler"):
        monkeypatch.setattr(f"runtimes.npu_compiler.{module}.find_compiler", refuse)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chunk", "1"], "--chunk 1 is not possible: expected 2 to"),
        (["--chunk", "999999"], "--chunk 999999 is not possible"),
        (["--chunk", "64", "--context", "32"], "longer than the context of 32: choose --chunk 32"),
        (["--experts", "tpu"], "cannot have experts on 'tpu': expected npu, gpu, cpu"),
        (["--context", "999999"], "--context 999999 is not possible"),
        (["--compile", "--platform", "1234"], "there is no NPU platform '1234'"),
    ],
)
def test_impossible_choice_is_refused_and_leaves_nothing(
    options: list[str], words: str, run: Callable, fails: Callable, tmp_path: Path, compiler: None
) -> None:
    place = tmp_path / "out"
    fails(run("export", "synthetic:tiny-dense", place, "--target", "npu", *options), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chunk", "64"], "target cpu takes prompts of any length: leave --chunk out"),
        (["--experts", "gpu"], "target cpu cannot have experts on 'gpu': expected none"),
        (["--compile"], "target cpu is compiled where it runs: leave --compile out"),
    ],
)
def test_npu_options_are_refused_for_another_target(
    options: list[str], words: str, run: Callable, fails: Callable, tmp_path: Path, compiler: None
) -> None:
    fails(run("export", "synthetic:tiny-dense", tmp_path / "out", *options), words)


def test_platform_without_compile_is_wrong_usage(run: Callable, tmp_path: Path) -> None:
    result = run(
        "export", "synthetic:tiny-dense", tmp_path / "out", "--target", "npu", "--platform", "4000"
    )
    assert result.exit_code == 2
    assert "add --compile" in result.stderr


def test_compile_without_a_compiler_is_refused_before_exporting(
    run: Callable, fails: Callable, tmp_path: Path, no_compiler: None
) -> None:
    place = tmp_path / "out"
    result = run("export", "synthetic:tiny-dense", place, "--target", "npu", "--compile")
    fails(result, "there is no NPU compiler here: it needs wine")
    assert list(tmp_path.iterdir()) == []


def test_blobs_and_their_versions_are_in_the_manifest(
    run: Callable, tmp_path: Path, compiler: None
) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--compile"]
    result = run(*words, "--platform", "4000", "--platform", "5010")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((place / "manifest.json").read_text())
    assert {(b["graph"], b["platform"]) for b in manifest["blobs"]} == {
        (graph, platform) for graph in ("prefill", "decode") for platform in ("4000", "5010")
    }
    for blob in manifest["blobs"]:
        assert (blob["compiler"], blob["openvino"]) == ("8.4", "2026.4.1")
        assert (place / blob["file"]).read_bytes() == b"blob"
    assert run("inspect", place).exit_code == 0


def test_refused_graph_leaves_no_bundle_half_compiled(
    run: Callable, fails: Callable, tmp_path: Path, compiler: None
) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--compile"]
    fails(run(*words, "--platform", "3720"), "refuses prefill.onnx for platform 3720")
    assert not place.exists()


def test_compile_tells_each_graph_and_platform(
    run: Callable, npu_bundle: Path, compiler: None
) -> None:
    result = run("compile", npu_bundle, "--platform", "4000", "--platform", "5010")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("1.50 ms") == 4
    assert "Intel's NPU compiler 8.4, of OpenVINO 2026.4.1" in result.stdout
    assert "nothing was executed" in result.stderr


def test_compile_fails_where_a_graph_is_refused_and_tells_the_others(
    run: Callable, npu_bundle: Path, compiler: None
) -> None:
    result = run("compile", npu_bundle, "--json")
    assert result.exit_code == 1
    graphs = json.loads(result.stdout)["graphs"]
    assert len(graphs) == 2 * 3
    refused = [(g["graph"], g["platform"]) for g in graphs if g["verdict"] is None]
    assert refused == [("prefill", "3720")]


def test_compile_without_a_compiler_never_passes(
    run: Callable, fails: Callable, npu_bundle: Path, no_compiler: None
) -> None:
    fails(run("compile", npu_bundle), "there is no NPU compiler here")


def test_compile_of_a_cpu_bundle_is_refused(run: Callable, fails: Callable, bundle: Path) -> None:
    fails(run("compile", bundle), "was made for cpu, which is not compiled ahead of time")


def test_compile_of_nothing_is_wrong_usage(run: Callable) -> None:
    assert run("compile").exit_code == 2


def test_generating_without_an_npu_names_the_driver(
    run: Callable, fails: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.ov_device, "list_names", lambda: ["CPU"])
    place = tmp_path / "demo"
    assert run("export", DEMO_MODEL, place, "--target", "npu").exit_code == 0
    fails(run("generate", place, "Once"), "finds no NPU here", "Intel NPU Driver")
    spoken = run("generate", place, "Once", "--max-new-tokens", "4", "--device", "cpu")
    assert spoken.exit_code == 0, spoken.stderr
    assert spoken.stdout.strip()


def test_bundle_with_a_damaged_manifest_can_be_overwritten(
    run: Callable, npu_bundle: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(npu_bundle, tmp_path / "damaged")
    (place / "decode.inputs_embeds.4000.blob").write_bytes(b"")
    (place / "manifest.json").write_text("{")
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--overwrite"]
    assert run(*words).exit_code == 0
    assert not list(place.glob("*.blob"))


def test_resumed_export_keeps_no_blob_of_before(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: None
) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu"]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("exporters.pipeline.seal", stop)
        assert run(*words, "--compile").exit_code != 0
    result = run(*words, "--resume")
    assert result.exit_code == 0, result.stderr
    assert not list(place.glob("*.blob"))


@pytest.mark.parametrize("target", ["openvino-cpu", "npu"])
def test_int4_of_the_demo_model_stays_close_to_torch(
    target: str, run: Callable, tmp_path: Path
) -> None:
    place = tmp_path / "demo"
    assert run("export", DEMO_MODEL, place, "--target", target).exit_code == 0
    # 0.018 nats seen, as on ONNX Runtime; a lost state or swapped rows give more than 1.
    words = ["--against", DEMO_MODEL, "--max-kld", "0.04", "--tokens", "256", "--greedy", "4"]
    result = run("verify", place, *words, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stdout + result.stderr
