"""`card` and `--record`: what the commands measured stands in the card of the real demo bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.bundle import CARD, MEASUREMENTS, open_bundle
from lfm2_deploy.card.measurements import read_measurements
from lfm2_deploy.demo import DEMO_MODEL


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


def test_every_export_has_a_card(bundle: Path) -> None:
    text = (bundle / CARD).read_text(encoding="utf-8")
    assert "# lfm2-demo-9m · int4 · cpu" in text
    assert "scales searched for the least error" in text
    assert "Rounding changes a tensor by" in text
    assert "### onnxruntime-genai" in text
    assert not (bundle / MEASUREMENTS).exists()


def test_check_records_where_it_ran_and_what_it_found(run: Callable, copied_bundle: Path) -> None:
    result = run("check", copied_bundle, "--record")
    assert result.exit_code == 0, result.stderr
    assert "recorded in" in result.stderr
    (one,) = read_measurements(open_bundle(copied_bundle))
    assert (one.kind, one.outcome, one.way, one.device) == ("check", "passed", "executed", "cpu")
    assert "onnxruntime" in one.driver
    assert one.figures[0].value < one.figures[1].value  # the error and its limit
    text = (copied_bundle / CARD).read_text(encoding="utf-8")
    assert "| cpu | **executed** | canary passed | onnxruntime" in text


def test_verify_and_compare_record_figures_with_errors(run: Callable, copied_bundle: Path) -> None:
    verified = run("verify", copied_bundle, "--tokens", 64, "--greedy", 0, "--record")
    assert verified.exit_code == 0, verified.stderr
    reference = f"torch:{DEMO_MODEL}"
    compared = run(
        "compare", copied_bundle, "--reference", reference, "--chunks", 2, "--length", 32,
        "--greedy", 0, "--no-speed", "--record",
    )  # fmt: skip
    assert compared.exit_code == 0, compared.stderr
    first, second = read_measurements(open_bundle(copied_bundle))
    assert (first.kind, second.kind) == ("verify", "compare")
    for one in (first, second):
        assert one.figures[0].name == "KL divergence"
        assert 0 < one.figures[0].value < 0.2
        assert one.figures[0].error is not None
        assert one.device == "cpu"
        assert "onnxruntime" in one.driver
    assert "2 windows of 32 tokens" in second.protocol
    text = (copied_bundle / CARD).read_text(encoding="utf-8")
    assert "**Accuracy** | KL divergence" in text


def test_record_is_refused_where_bundles_are_made_aside(run: Callable) -> None:
    result = run("compare", DEMO_MODEL, "--precision", "int8", "--record")
    assert result.exit_code == 2
    assert "--record is for bundles of your own" in result.stderr


def test_nothing_is_recorded_unasked(run: Callable, copied_bundle: Path) -> None:
    before = (copied_bundle / CARD).read_bytes()
    assert run("check", copied_bundle).exit_code == 0
    assert not (copied_bundle / MEASUREMENTS).exists()
    assert (copied_bundle / CARD).read_bytes() == before


def test_card_prints_without_writing(run: Callable, copied_bundle: Path) -> None:
    (copied_bundle / CARD).unlink()
    printed = run("card", copied_bundle, "--print", "--repository", "somebody/whales")
    assert "lfm2-deploy pull somebody/whales" in printed.stdout
    assert not (copied_bundle / CARD).exists()
    assert run("card", copied_bundle).exit_code == 0
    assert "pull" not in (copied_bundle / CARD).read_text(encoding="utf-8").partition("##")[0]


def test_card_of_a_wrong_repository_is_wrong_usage(run: Callable, copied_bundle: Path) -> None:
    result = run("card", copied_bundle, "--repository", "whales")
    assert result.exit_code == 2
    assert "write USER/REPO" in result.stderr


def test_damaged_measurements_are_one_line(run: Callable, copied_bundle: Path) -> None:
    (copied_bundle / MEASUREMENTS).write_text(json.dumps({"schema": 99}))
    result = run("card", copied_bundle)
    assert result.exit_code == 1
    assert "measurements.json has schema 99" in result.stderr


def test_export_over_a_bundle_keeps_what_was_written_by_hand(run: Callable, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    words = ("export", "synthetic:tiny-dense", place, "--precision", "fp32", "--no-canary")
    assert run(*words).exit_code == 0
    with (place / CARD).open("a", encoding="utf-8") as file:
        file.write("\nMy own words.\n")
    result = run(*words, "--overwrite")
    assert result.exit_code == 0, result.stderr
    text = (place / CARD).read_text(encoding="utf-8")
    assert text.count("My own words.") == 1
    assert "random weights in the shape of" in text.lower()
