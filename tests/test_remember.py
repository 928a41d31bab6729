from __future__ import annotations

import os
from pathlib import Path

import pytest

from lfm2_deploy import remember as memory
from lfm2_deploy.remember import list_remembered, recall, remember

KEY = {"device": "npu", "driver": "1"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    return tmp_path


def test_finding_is_recalled_by_the_same_key_alone() -> None:
    remember("kind", KEY, {"speed": 3})
    assert recall("kind", KEY) == {"speed": 3}
    assert recall("kind", {**KEY, "driver": "2"}) is None
    assert recall("other", KEY) is None
    remember("kind", KEY, {"speed": 4})
    assert recall("kind", KEY) == {"speed": 4}
    ((key, finding),) = list_remembered("kind")
    assert key.items() >= KEY.items()
    assert finding == {"speed": 4}


def test_nothing_is_left_half_written(cache: Path) -> None:
    remember("kind", KEY, {"speed": 3})
    assert [file.suffix for file in cache.glob("**/*") if file.is_file()] == [".json"]


def test_other_version_of_the_package_finds_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    remember("kind", KEY, {})
    monkeypatch.setattr(memory, "version", lambda name: "99")
    assert recall("kind", KEY) is None


def test_oldest_findings_make_room(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(memory, "_MOST", 3)
    for number in range(5):
        remember("kind", {"n": str(number)}, {})
        for age, file in enumerate(sorted(cache.glob("**/*.json"), key=os.path.getmtime)):
            os.utime(file, (1000 + age, 1000 + age))
    left = [key["n"] for key, _ in list_remembered("kind")]
    assert sorted(left) == ["2", "3", "4"]


def test_switched_off_memory_neither_keeps_nor_recalls(monkeypatch: pytest.MonkeyPatch) -> None:
    remember("kind", KEY, {"speed": 3})
    monkeypatch.setenv("LFM2_DEPLOY_REMEMBER", "0")
    assert recall("kind", KEY) is None
    remember("kind", {"other": "key"}, {})
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    assert recall("kind", {"other": "key"}) is None


def test_cache_that_cannot_be_written_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(cache / "file"))
    remember("kind", KEY, {"speed": 3})
    assert recall("kind", KEY) is None
    assert list(list_remembered("kind")) == []
