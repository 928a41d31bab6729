"""`export --target auto`, and that what was named is never exchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy import auto, exporting
from lfm2_deploy.auto import Candidate, Choice

CHOICE = Choice(
    "openvino-cpu",
    (
        Candidate("igpu", "passed over", "there is none"),
        Candidate("openvino-cpu", "chosen", "ran a graph", "a made-up CPU", "ran a graph"),
    ),
)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine for which auto chooses what it would choose nowhere."""
    monkeypatch.setattr(auto, "choose", lambda wish: CHOICE)
    monkeypatch.setattr(exporting, "choose", lambda wish: CHOICE)


@pytest.mark.usefixtures("chosen")
def test_choice_is_told_on_stderr_in_json_and_in_the_manifest(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", "synthetic:tiny-dense", "--target", "Auto", "--json")
    assert result.exit_code == 0, result.stderr
    assert "  igpu          passed over  there is none\n" in result.stderr
    assert "  openvino-cpu  chosen       a made-up CPU: ran a graph\n" in result.stderr
    record = json.loads(result.stdout)
    assert record["target"] == "openvino-cpu"
    assert record["path"] == "tiny-dense-openvino-cpu-int4"
    assert [found["outcome"] for found in record["auto"]] == ["passed over", "chosen"]
    note = "--target auto chose openvino-cpu on a made-up CPU: ran a graph"
    assert note in record["notes"]
    manifest = json.loads((tmp_path / record["path"] / "manifest.json").read_text())
    assert note in manifest["notes"]


@pytest.mark.usefixtures("chosen")
def test_library_chooses_too(tmp_path: Path) -> None:
    bundle = exporting.export("synthetic:tiny-dense", tmp_path / "bundle", target="auto")
    assert bundle.manifest.target == "openvino-cpu"
    assert bundle.manifest.notes[0].startswith("--target auto chose openvino-cpu")


def test_target_that_was_named_is_made_without_looking(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(wish: object) -> None:
        raise AssertionError("the machine was looked at")

    monkeypatch.setattr(auto, "choose", fail)
    monkeypatch.setattr(exporting, "choose", fail)
    place = tmp_path / "bundle"
    result = run("export", "synthetic:tiny-dense", place, "--target", "npu", "--json")
    record = json.loads(result.stdout)
    assert (record["target"], record["auto"]) == ("npu", None)


def test_machine_that_runs_nothing_is_one_line(
    run: Callable, fails: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "list_order", tuple)
    result = run("export", "synthetic:tiny-dense", tmp_path / "bundle", "--target", "auto")
    fails(result, "--target auto finds no target to choose")
    assert not (tmp_path / "bundle").exists()
