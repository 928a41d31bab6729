"""`lfm2-deploy prepare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


def test_prepared_bundle_speaks_as_before(run: Callable, bundle: Path) -> None:
    words = ("generate", bundle, "Hello", "--greedy", "--max-new-tokens", "8")
    before = run(*words)
    record = json.loads(run("prepare", bundle, "--json").stdout)
    assert Path(record["path"]).is_dir()
    assert record["size_bytes"] > 0
    assert run(*words).stdout == before.stdout


def test_remove_tells_whether_there_was_a_copy(run: Callable, bundle: Path) -> None:
    assert "prepared in" in run("prepare", bundle).stdout
    assert run("prepare", bundle, "--remove").stderr == "removed\n"
    assert "was not prepared" in run("prepare", bundle, "--remove").stderr
    assert json.loads(run("prepare", bundle, "--remove", "--json").stdout) == {"removed": False}


def test_folder_that_is_no_bundle_is_told(run: Callable, fails: Callable, tmp_path: Path) -> None:
    fails(run("prepare", tmp_path), "is not a bundle")
