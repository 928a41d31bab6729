"""`lfm2-deploy bench`, in processes of its own as users have it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

QUICK = ("--contexts", "16,64", "--decode", "8", "--rounds", "2", "--threads", "1")


def test_json_has_every_figure(run: Callable, bundle: Path) -> None:
    record = json.loads(run("bench", bundle, *QUICK, "--json").stdout)
    assert record["versions"]["onnxruntime"]
    assert record["machine"]["logical_cores"]
    (result,) = record["bundles"].values()
    assert result["load_cold_s"] > 0
    assert result["first_token_cold_ms"] > 0
    assert result["threads"] == 1
    assert [speed["context"] for speed in result["speeds"]] == [16, 64]
    for speed in result["speeds"]:
        assert speed["bound"] == result["bandwidth_bytes_per_second"] / speed["bytes_per_token"]
        assert speed["share_of_bound"] == speed["decode"] / speed["bound"]
        low, high = speed["decode_range"]
        assert low <= speed["decode"] <= high


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told otherwise elsewhere")
def test_memory_is_that_of_the_bundles_own_process(run: Callable, bundle: Path) -> None:
    (result,) = json.loads(run("bench", bundle, *QUICK, "--json").stdout)["bundles"].values()
    # This process holds torch and more; one that only runs the demo model holds 0.1 GB.
    assert 3e7 < result["resident_loaded_bytes"] <= result["peak_bytes"] < 2e8


def test_two_bundles_are_set_side_by_side(
    run: Callable, bundle: Path, random_bundle: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "speed.png"
    result = run("bench", bundle, random_bundle, *QUICK, "--plot", picture)
    assert result.exit_code == 0, result.stderr
    assert "ratios" in result.stdout
    assert result.stdout.count("prefill tok/s") == 2
    assert picture.stat().st_size > 1000


def test_contexts_without_room_are_left_out_and_said(run: Callable, random_bundle: Path) -> None:
    words = ("--contexts", "16,999999", "--decode", "8", "--rounds", "1", "--json")
    result = run("bench", random_bundle, *words)
    (measured,) = json.loads(result.stdout)["bundles"].values()
    assert len(measured["speeds"]) == 1
    assert "left out" in result.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--contexts", "many"), "write numbers of tokens"),
        (("--contexts", "0"), "write numbers of tokens"),
        (("--plot", "speed.bmp"), "must end in .png"),
        (("--plot", "no/such/folder/speed.png"), "there is no folder"),
    ],
)
def test_wrong_words_are_a_matter_of_usage(
    run: Callable, bundle: Path, words: tuple[str, str], part: str
) -> None:
    result = run("bench", bundle, *words)
    assert result.exit_code == 2
    assert part in result.stderr


def test_nothing_that_fits_is_told(run: Callable, fails: Callable, random_bundle: Path) -> None:
    fails(run("bench", random_bundle, "--contexts", "999999"), "--contexts must have one")


def test_bundle_that_does_not_load_is_told_in_a_line(
    run: Callable, fails: Callable, copied_bundle: Path
) -> None:
    graph = copied_bundle / "model.onnx"
    manifest = json.loads((copied_bundle / "manifest.json").read_text())
    graph.write_bytes(b"x" * 100)
    record = {"size_bytes": 100, "sha256": sha256(graph.read_bytes()).hexdigest()}
    manifest["files"]["model.onnx"] = record
    (copied_bundle / "manifest.json").write_text(json.dumps(manifest))
    fails(run("bench", copied_bundle, *QUICK), "cannot load")


def test_process_that_dies_is_told_in_a_line(
    run: Callable, fails: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.bench import process

    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    fails(run("bench", bundle, *QUICK), "ended with code 1")


@pytest.fixture
def mistaken_bundle(copied_bundle: Path) -> Path:
    """A bundle whose canary expects another model's logits."""
    file = copied_bundle / "canary.json"
    canary = json.loads(file.read_text(encoding="utf-8"))
    swap_logits(canary)
    file.write_text(json.dumps(canary), encoding="utf-8")
    manifest = json.loads((copied_bundle / "manifest.json").read_text(encoding="utf-8"))
    digest = sha256(file.read_bytes()).hexdigest()
    manifest["files"]["canary.json"] = {"size_bytes": file.stat().st_size, "sha256": digest}
    (copied_bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copied_bundle


def swap_logits(canary: dict) -> None:
    for row in canary["rows"]:
        for call in row["calls"]:
            call["expected"]["sampled"].reverse()
            call["expected"]["top_ids"].reverse()


def test_device_that_is_wrong_is_refused_before_anything_is_measured(
    run: Callable, fails: Callable, mistaken_bundle: Path
) -> None:
    result = run("bench", mistaken_bundle, *QUICK, "--canary", "always")
    fails(result, "does not compute this model", "--canary off loads it")
    assert "loading again" not in result.stderr
    result = run("bench", mistaken_bundle, *QUICK, "--canary", "off")
    assert result.exit_code == 0, result.stderr
