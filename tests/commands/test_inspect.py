"""`lfm2-deploy inspect`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.commands.model_report import count_active_parameters, count_parameters
from lfm2_deploy.config import read_config
from lfm2_deploy.demo import DEMO_MODEL


def test_bundle_in_json_tells_sizes_states_and_plan(run: Callable, bundle: Path) -> None:
    record = json.loads(run("inspect", bundle, "--json").stdout)
    config = record["config"]
    assert record["kind"] == "bundle"
    assert record["precision"] == "int4"
    assert record["size_bytes"] == sum(f["size_bytes"] for f in record["files"].values())
    layers = config["layer_types"]
    states = record["states"]
    assert states["convolutions"] == layers.count("conv")
    assert states["caches"] == 2 * layers.count("full_attention")
    assert states["conv_bytes"] == 4 * 256 * 2 * layers.count("conv")
    assert states["cache_bytes_per_token"] == 4 * 2 * 64 * 2 * layers.count("full_attention")
    parameters = count_parameters(read_config(DEMO_MODEL))
    assert sum(line["parameters"] for line in record["plan"]) == parameters
    assert {line["bits"] for line in record["plan"]} == {4, 8, 32}


def test_bundle_as_text_shows_files_and_reasons(run: Callable, bundle: Path) -> None:
    result = run("inspect", bundle)
    assert result.exit_code == 0
    for words in ("model.onnx.data", "a token", "router", "c c A c c A c A", "2,048 tokens"):
        assert words in result.stdout
    assert ".experts." not in result.stdout


def test_notes_of_the_manifest_are_part_of_the_result(run: Callable, copied_bundle: Path) -> None:
    file = copied_bundle / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    notes = ["a [guess] was made", "and another"]
    file.write_text(json.dumps({**manifest, "notes": notes}), encoding="utf-8")
    shown = run("inspect", copied_bundle).stdout
    assert "\nNotes\n  1  a [guess] was made\n  2  and another\n" in shown
    assert json.loads(run("inspect", copied_bundle, "--json").stdout)["notes"] == notes
    file.write_text(json.dumps({**manifest, "notes": []}), encoding="utf-8")
    assert "Notes" not in run("inspect", copied_bundle).stdout


def test_tensors_are_listed_where_asked(run: Callable, bundle: Path) -> None:
    result = run("inspect", bundle, "--tensors")
    assert "model.layers.7.feed_forward.experts.*.w2.weight" in result.stdout


def test_check_of_a_whole_bundle_passes(run: Callable, bundle: Path) -> None:
    result = run("inspect", bundle, "--check")
    assert result.exit_code == 0
    assert "as they were written" in result.stderr
    assert json.loads(run("inspect", bundle, "--check", "--json").stdout)["checked"] is True


def test_check_of_a_damaged_bundle_names_the_file(
    run: Callable, fails: Callable, copied_bundle: Path
) -> None:
    file = copied_bundle / "model.onnx.data"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    fails(run("inspect", copied_bundle, "--check"), "model.onnx.data", "sha256")


def test_damaged_manifest_is_one_line(run: Callable, fails: Callable, copied_bundle: Path) -> None:
    (copied_bundle / "manifest.json").write_text("{", encoding="utf-8")
    fails(run("inspect", copied_bundle), "manifest.json", "damaged")


def test_synthetic_model_tells_its_shape_without_making_it(run: Callable) -> None:
    result = run("inspect", "synthetic:LFM2-8B-A1B")
    assert result.stdout.startswith("LFM2-8B-A1B  mixture of experts\n")
    assert "8.34 B, 1.56 B active" in result.stdout
    record = json.loads(run("inspect", "synthetic:LFM2-8B-A1B", "--json").stdout)
    assert record["kind"] == "model"
    assert record["parameters"] == 8_339_930_560


def test_folder_tells_its_name(run: Callable) -> None:
    record = json.loads(run("inspect", DEMO_MODEL, "--json").stdout)
    assert record["origin"]["kind"] == "folder"


def test_dense_model_is_all_active(run: Callable) -> None:
    record = json.loads(run("inspect", "synthetic:tiny-dense", "--json").stdout)
    assert record["parameters"] == record["active_parameters"]


def test_half_of_the_demo_models_experts_are_active() -> None:
    config = read_config(DEMO_MODEL)
    idle = count_parameters(config) - count_active_parameters(config)
    assert idle == 6 * 4 * 3 * 256 * 128


@pytest.mark.parametrize("option", ["--check", "--tensors"])
def test_option_for_bundles_refuses_a_model(run: Callable, fails: Callable, option: str) -> None:
    fails(run("inspect", DEMO_MODEL, option), "not a bundle", option)


def test_nothing_of_that_name_is_one_line(run: Callable, fails: Callable) -> None:
    fails(run("inspect", "nothing-here"), "nothing-here")


def test_plot_of_a_bundle_is_an_svg_file(
    run: Callable, copied_bundle: Path, tmp_path: Path
) -> None:
    tensor = {"name": "model.layers.0.conv.in_proj.weight", "bits": 4, "group": 32}
    errors = {"error": 0.05, "largest": 0.05}
    record_rounding(
        copied_bundle,
        {
            "method": "search",
            "tensors": [{**tensor, **errors}],
            "layers": [{"layer": 0, "error": 0.03}],
        },
    )
    result = run("inspect", copied_bundle, "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 0
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "Error by layer" in text
    assert "conv.in_proj" in text
    refused = run("inspect", copied_bundle, "--plot", tmp_path / "plot.png")
    assert refused.exit_code == 1
    assert ".svg" in refused.stderr


def test_plot_without_a_record_says_what_to_do(
    run: Callable, copied_bundle: Path, tmp_path: Path
) -> None:
    record_rounding(copied_bundle, None)
    result = run("inspect", copied_bundle, "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 1
    assert "no record of rounding" in result.stderr
    assert not result.stdout
    assert not (tmp_path / "plot.svg").exists()


def test_plot_of_a_bundle_of_before_errors_were_measured_says_what_to_do(
    run: Callable, copied_bundle: Path, tmp_path: Path
) -> None:
    record_rounding(copied_bundle, {"method": "search"})
    result = run("inspect", copied_bundle, "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 1
    assert "export the model again" in " ".join(result.stderr.split())


def test_default_bundle_is_explained_by_layer_with_errors_of_its_weights(
    run: Callable, bundle: Path, tmp_path: Path
) -> None:
    result = run("inspect", bundle, "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "Rounding search" in shown
    assert "layer mixer bits group error block bits group error 0 conv 4 32 " in shown
    assert "errors are of the weights alone" in shown.lower()
    assert "after" not in shown.partition("Rounding")[2]
    assert "embed_tokens 8 bits in groups of 256, its weights off by 0." in shown
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "Error of the weights by layer" in text
    record = json.loads(run("inspect", bundle, "--json").stdout)["rounding"]
    assert record["weights"]
    assert not record["tensors"]


def test_size_is_explained_part_by_part(run: Callable, copied_bundle: Path, tmp_path: Path) -> None:
    unit = {
        "layer": 3, "kind": "feed_forward", "label": "8 bits, groups of 128", "bits": "8",
        "group": "128", "size_bytes": 123_456, "cost": 1.5e-05,
        "least_label": "4 bits, groups of 256", "least_bits": "4", "least_group": "256",
        "least_cost": 0.00123,
    }  # fmt: skip
    choice = {
        "budget_bytes": 2 * 10**6, "size_bytes": 10**6, "cost": 0.02, "text": "mine.txt",
        "tokens": 2048, "units": [unit],
    }  # fmt: skip
    error = {"name": "model.layers.3.conv.in_proj.weight", "bits": 4, "group": 32}
    weights = [{**error, "error": 0.05, "largest": 0.05}]
    rounding = {"method": "rtn", "max_size_bytes": 10**7, "weights": weights, "choice": choice}
    record_rounding(copied_bundle, rounding)
    result = run("inspect", copied_bundle, "--plot", tmp_path / "plot.svg")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "3 block 8 128 123 kB 1.5" in shown
    assert " 4 256 0.0012" in shown
    assert "mine.txt, 2,048 tokens" in shown
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "KL divergence that each part alone adds" in text
    assert "got 8 bits, groups of 128, which adds" in text
    record = json.loads(run("inspect", copied_bundle, "--json").stdout)["rounding"]
    assert record["choice"] == choice


def record_rounding(bundle: Path, record: object) -> None:
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**manifest, "rounding": record}), encoding="utf-8")


def test_bundle_that_was_calibrated_is_explained_by_layer(
    run: Callable, copied_bundle: Path
) -> None:
    assert "Rounding  search" in run("inspect", copied_bundle).stdout
    file = copied_bundle / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    name = "model.layers.2.feed_forward.experts.*.w1.weight"
    tensor = {"name": name, "bits": 4, "group": 128, "error": 0.05, "largest": 0.07}
    layer = {"layer": 2, "error": 0.081, "fewest_tokens": 90, "median_tokens": 1234}
    rounding = {
        "method": "gptq", "text": "mine.txt", "text_sha256": "abc", "tokens": 2048,
        "rare_below": 256, "max_size_bytes": 7_000_000, "tensors": [tensor],
        "layers": [{**layer, "rare_experts": 3}],
    }  # fmt: skip
    file.write_text(json.dumps({**manifest, "rounding": rounding}), encoding="utf-8")
    result = run("inspect", copied_bundle)
    rows = [line for line in result.stdout.splitlines() if line.strip().startswith("2 ")]
    assert max(map(len, rows)) <= 80
    assert not result.stderr
    shown = " ".join(result.stdout.split())
    assert "'error' is what rounding changes" in shown
    assert "Rounding gptq" in shown
    assert "mine.txt, 2,048 tokens" in shown
    assert "within 7 MB" in shown
    assert "2 attn float 8 experts 4 128 5.0% 8.1%" in shown
    assert "2 8 90 1,234 3" in shown
    assert "on the calibration text itself: they do not compare between texts" in shown
    assert "warning fewer than 8,192 tokens" in shown
    expected = {**rounding, "weights": [], "choice": None}
    assert json.loads(run("inspect", copied_bundle, "--json").stdout)["rounding"] == expected


def test_record_of_rounding_sends_nothing_to_the_terminal_but_text(
    run: Callable, copied_bundle: Path
) -> None:
    record_rounding(copied_bundle, {"method": "\x1b[2Jgptq", "text": "a\x1b[2J", "tokens": 1})
    result = run("inspect", copied_bundle)
    assert result.exit_code == 0
    assert "gptq" in result.stdout
    assert "\x1b" not in result.stdout
