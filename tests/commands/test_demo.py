"""`lfm2-deploy demo`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lfm2_deploy.commands import demo_bundle
from lfm2_deploy.registry import RUNTIMES

FEW = ("--max-new-tokens", "6", "--threads", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache, empty at first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("LOCALAPPDATA", str(folder))
        yield folder / "lfm2-deploy"


@pytest.fixture(scope="module")
def first_run(run: Callable, cache: Path) -> dict:
    result = run("demo", *FEW, "--json")
    assert result.exit_code == 0, result.stderr
    record: dict = json.loads(result.stdout)
    return record


def test_first_run_exports_generates_and_compares(first_run: dict, cache: Path) -> None:
    assert first_run["path"] == str(cache / "demo-int4")
    assert first_run["reused"] is False
    assert len(first_run["completion"]["token_ids"]) == 6
    assert first_run["comparison"]["kld"] < 0.5
    assert {"export", "load", "generate", "compare"} <= set(first_run["steps_seconds"])


def test_second_run_uses_the_same_bundle_and_tells_what_it_is(
    run: Callable, first_run: dict
) -> None:
    result = run("demo", *FEW)
    assert result.exit_code == 0
    assert "made before" in result.stdout
    text = first_run["completion"]["text"]
    assert f"My fellow Americans, the state of our Union is{text}\n" in result.stdout
    for words in ("c c A c c A c A", "8 of width 128, 4 run", "tok/s", "KL divergence"):
        assert words in result.stdout
    assert "next: lfm2-deploy chat" in result.stderr


def test_prompt_of_the_users_own_is_continued(run: Callable, first_run: dict) -> None:
    result = run("demo", "In the beginning God [b]", *FEW)
    assert "\nIn the beginning God [b]" in result.stdout


def test_without_torch_the_comparison_is_left_out(
    run: Callable, first_run: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(RUNTIMES["reference"]), "missing", lambda entry: ("torch",) * ("torch" in entry.needs)
    )
    result = run("demo", *FEW)
    assert result.exit_code == 0
    assert "not compared" in result.stderr
    assert json.loads(run("demo", *FEW, "--json").stdout)["comparison"] is None


def test_bundle_of_another_demo_model_is_not_used(
    first_run: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_bundle.find_demo_bundle(None, "int4", fresh=False)[0] is not None
    assert demo_bundle.find_demo_bundle(None, "int4", fresh=True) == (None, "")
    assert demo_bundle.find_demo_bundle(None, "int8", fresh=False) == (None, "")
    monkeypatch.setattr(demo_bundle, "hash_demo_model", lambda: "other")
    found, why = demo_bundle.find_demo_bundle(None, "int4", fresh=False)
    assert found is None
    assert "another demo model" in why


@pytest.mark.parametrize(
    ("what", "phrase"), [("canary", "has no canary"), ("packages", "made with another onnx")]
)
def test_bundle_of_older_code_is_made_anew_and_said(
    run: Callable, first_run: dict, what: str, phrase: str
) -> None:
    file = Path(first_run["path"]) / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    if what == "canary":
        del manifest["files"]["canary.json"]
        (file.parent / "canary.json").unlink()
    else:
        manifest["made_with"]["onnx"] = "0.0"
    file.write_text(json.dumps(manifest), encoding="utf-8")
    result = run("demo", *FEW)
    assert result.exit_code == 0, result.stderr
    (title,) = [line for line in result.stdout.splitlines() if line.startswith("Its bundle")]
    assert "exported in" in title
    assert title.endswith(phrase)
    assert demo_bundle.find_demo_bundle(None, "int4", fresh=False)[0] is not None


def test_bundle_of_something_else_is_not_replaced(
    run: Callable, fails: Callable, bundle: Path
) -> None:
    fails(run("demo", "--out", bundle), str(bundle), "--fresh")
