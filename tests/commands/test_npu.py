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
        (["--chunk", "64", "--context", "32"], "--chunk 64 is longer than the context of 32"),
        (["--context", "1"], "target npu expects 2 or more"),
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
    # Two graphs for two platforms, and for each platform a token and a chunk in all.
    assert result.stdout.count("1.50 ms") == 4 + 4
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


def test_compile_adds_up_a_token_and_a_chunk(run: Callable, tmp_path: Path, compiler: None) -> None:
    place = tmp_path / "moe"
    assert run("export", "synthetic:tiny-moe", place, "--target", "npu").exit_code == 0
    (total,) = json.loads(run("compile", place, "--platform", "4000", "--json").stdout)["totals"]
    manifest = json.loads((place / "manifest.json").read_text())
    config = manifest["config"]
    layers = sum(graph["name"].startswith("experts.") for graph in manifest["graphs"])
    calls = layers + 1 + layers * config["num_experts_per_tok"]
    # The fake compiler expects 1,500 us of every graph.
    assert total["decode_calls"] == calls
    assert total["decode_us"] == 1500 * calls
    assert total["prefill_calls"] >= layers + 1 + layers * config["num_experts"]
    text = run("compile", place, "--platform", "4000")
    assert f"{1.5 * calls:.2f} ms a token in {calls} calls" in text.stdout
    assert "without what runs elsewhere (embeddings, head, routers)" in text.stderr


def test_resumed_export_does_not_compile_again(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: None
) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--compile"]
    real, compiled = FakeCompiler.compile, []

    def stop_at_second(self: FakeCompiler, graph: Path, platform: str, blob: Path) -> Verdict:
        if len(compiled) == 1:
            raise KeyboardInterrupt
        compiled.append(graph.name)
        return real(self, graph, platform, blob)

    with monkeypatch.context() as patch:
        patch.setattr(FakeCompiler, "compile", stop_at_second)
        assert run(*words).exit_code != 0

    def count(self: FakeCompiler, graph: Path, platform: str, blob: Path) -> Verdict:
        compiled.append(graph.name)
        return real(self, graph, platform, blob)

    monkeypatch.setattr(FakeCompiler, "compile", count)
    result = run(*words, "--resume")
    assert result.exit_code == 0, result.stderr
    assert sorted(compiled) == ["decode.onnx", "prefill.onnx"]
    files = json.loads((place / "manifest.json").read_text())["files"]
    assert not [name for name in files if name.endswith(".blob.json")]


def test_inspect_shows_what_was_chosen(run: Callable, tmp_path: Path, compiler: None) -> None:
    place = tmp_path / "moe"
    words = ["export", "synthetic:tiny-moe", place, "--target", "npu", "--experts", "gpu"]
    assert run(*words, "--chunk", "32", "--compile", "--platform", "5010").exit_code == 0
    shown = run("inspect", place).stdout
    for fact in ("32 tokens of a prompt in one call", "experts on", "gpu", "compiled 5010"):
        assert fact in shown


def test_target_is_named_in_any_case(run: Callable, tmp_path: Path) -> None:
    place = tmp_path / "out"
    assert run("export", "synthetic:tiny-dense", place, "--target", "NPU").exit_code == 0
    assert json.loads((place / "manifest.json").read_text())["target"] == "npu"


def test_short_context_shortens_the_chunk(run: Callable, tmp_path: Path) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--context", "32"]
    assert run(*words).exit_code == 0
    assert json.loads((place / "manifest.json").read_text())["chunk"] == 32


def test_float32_is_made_with_a_note(run: Callable, tmp_path: Path) -> None:
    words = ["export", "synthetic:tiny-dense", tmp_path / "out", "--target", "npu"]
    result = run(*words, "--precision", "fp32", "--experts", "cpu")
    assert result.exit_code == 0
    assert "NPUs and GPUs compute in float16" in result.stderr
    assert "the model has no experts: --experts cpu changed nothing" in result.stderr


def test_plan_of_an_npu_is_refused(run: Callable, fails: Callable) -> None:
    fails(run("plan", "synthetic:LFM2-350M", "--target", "npu"), "plan knows what target cpu takes")


def test_speculation_that_does_nothing_is_told(run: Callable, tmp_path: Path) -> None:
    place = tmp_path / "demo"
    assert run("export", DEMO_MODEL, place, "--target", "openvino-cpu").exit_code == 0
    result = run("generate", place, "a b a b a b", "--speculate", "--max-new-tokens", "2")
    assert result.exit_code == 0
    assert "--speculate does nothing" in result.stderr
    described = json.loads(run("generate", place, "a", "--max-new-tokens", "1", "--json").stdout)
    assert described["device"].startswith("CPU (")


def test_unknown_platform_is_refused_before_anything_is_downloaded(
    run: Callable, fails: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(tell: object) -> None:
        raise AssertionError("it downloaded")

    monkeypatch.setattr("runtimes.npu_compiler.wine.set_up", download)
    fails(run("compile", "--set-up", "--platform", "1234"), "there is no NPU platform '1234'")


def test_platform_given_twice_is_compiled_once(
    run: Callable, tmp_path: Path, compiler: None
) -> None:
    place = tmp_path / "out"
    words = ["export", "synthetic:tiny-dense", place, "--target", "npu", "--compile"]
    assert run(*words, "--platform", "4000", "--platform", "4000").exit_code == 0
    assert len(json.loads((place / "manifest.json").read_text())["blobs"]) == 2
