"""`lfm2-deploy eval`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="not run: lm-eval is not installed")
FEW = ("--limit", "3", "--threads", "1")


def test_list_tells_what_needs_no_download(run: Callable) -> None:
    result = run("eval", "--list")
    assert result.exit_code == 0
    first = result.stdout.splitlines()[1]
    assert first.split()[0] == "lfm2_demo_ending"
    assert "which of four clauses" in first
    assert "thousands more" in result.stderr


def test_list_has_the_users_folder_too(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# my questions\ntask: mine\n")
    record = json.loads(run("eval", "--list", "--task-folder", tmp_path, "--json").stdout)
    assert record["tasks"]["mine"] == "my questions"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "BUNDLE is missing"),
        (("./bundle",), "--tasks is missing"),
        (("./bundle", "--tasks", " , "), "--tasks is missing"),
        (("./bundle", "--tasks", "a", "--output", "no/such/folder/x.json"), "no such folder"),
        (("./bundle", "--tasks", "a", "--limit", "0"), "--limit"),
    ],
)
def test_wrong_words_are_a_matter_of_usage(
    run: Callable, fails: Callable, words: tuple[str, ...], part: str
) -> None:
    fails(run("eval", *words), part, code=2)


def test_extra_that_is_missing_is_told_with_its_command(
    run: Callable, fails: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name)
    )
    result = run("eval", bundle, "--tasks", "arc_easy")
    fails(result, "eval needs lm_eval", "pip install 'lfm2-deploy[eval]'")


def test_bundle_that_is_not_there_is_told_first(
    run: Callable, fails: Callable, tmp_path: Path
) -> None:
    fails(run("eval", tmp_path / "absent", "--tasks", "lfm2_demo_ending"), "absent")


@needs_harness
def test_table_has_figures_with_their_errors(run: Callable, bundle: Path) -> None:
    result = run("eval", bundle, "--tasks", "lfm2_demo_ending", *FEW)
    assert result.exit_code == 0, result.stderr
    title, heading, figure, *_ = result.stdout.splitlines()
    assert "int4, ort on cpu" in title
    assert heading.split() == ["task", "metric", "value", "stderr", "questions", "few-shot"]
    assert figure.split()[:3] == ["lfm2_demo_ending", "acc", "↑"]
    assert "±" in figure
    assert "tokens read" in result.stdout
    assert "lm_eval" not in result.stderr


@needs_harness
def test_json_has_all_that_is_needed_to_run_it_again(
    run: Callable, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    names = "lfm2_demo_last_word,lfm2_demo_ending"
    words = ("--few-shot", "1", "--output", file, "--json")
    result = run("eval", bundle, "--tasks", names, *FEW, *words)
    record = json.loads(result.stdout)
    assert json.loads(file.read_text(encoding="utf-8")) == record
    assert [task["name"] for task in record["tasks"]] == names.split(",")
    assert [task["samples"] for task in record["tasks"]] == [3, 3]
    assert record["settings"]["few_shot"] == 1
    assert record["settings"]["limit"] == 3
    assert record["versions"]["lm-eval"]
    assert (record["precision"], record["device"]) == ("int4", "cpu")
    metric = record["tasks"][1]["metrics"][0]
    assert (metric["name"], metric["higher_is_better"]) == ("acc", True)
    assert 0 <= metric["value"] <= 1
    assert metric["stderr"] > 0 or metric["value"] in (0, 1)


@needs_harness
def test_unknown_task_of_a_folder_is_told_with_the_nearest(
    run: Callable, fails: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.evaluation import harness

    index = harness._index
    # The harness's own index takes ten seconds.
    monkeypatch.setattr(harness, "_index", lambda folder, everything: index(folder, False))
    result = run("eval", bundle, "--tasks", "lfm2_demo_endings")
    fails(result, "there is no task 'lfm2_demo_endings'", "did you mean lfm2_demo_ending?", code=2)
