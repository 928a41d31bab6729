"""Large files are hashed before the first load, and again where they change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy import api
from lfm2_deploy import bundle as bundle_module
from lfm2_deploy.bundle import WEIGHTS, Bundle, open_bundle
from lfm2_deploy.compare.subjects import read_subject
from lfm2_deploy.contracts import ignore_progress
from lfm2_deploy.errors import BundleError
from lfm2_deploy.intact import ensure_intact, remember_intact

DAMAGED = r"model\.onnx\.data is damaged: its sha256"


@pytest.fixture
def place(
    bundle_of: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A bundle whose weights pass for large, on a machine that remembers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    monkeypatch.setattr(bundle_module, "_HASHED_AT_OPEN", 2**14)
    return shutil.copytree(bundle_of("dense", "int8").path, tmp_path / "bundle")


def damage(file: Path) -> None:
    """Invert some bytes in the middle."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(255 - byte for byte in content[middle : middle + 300])
    file.write_bytes(content)


def count_hashed(place: Path, again: bool = False) -> int:
    steps: list[int] = []
    ensure_intact(open_bundle(place), lambda what, done, total: steps.append(done), again)
    return len(steps)


@pytest.mark.parametrize("canary", ["auto", "always"])
def test_load_of_damaged_large_weights_is_refused(place: Path, canary: str) -> None:
    damage(place / WEIGHTS)
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=DAMAGED):
        lfm2_deploy.load(place, canary=canary)


def test_check_of_damaged_large_weights_is_refused_though_they_were_known(place: Path) -> None:
    damage(place / WEIGHTS)
    remember_intact(open_bundle(place))  # as if the disk had failed without a trace
    with pytest.raises(BundleError, match=DAMAGED):
        api.check(place)


def test_compare_and_verify_of_damaged_large_weights_are_refused(place: Path) -> None:
    damage(place / WEIGHTS)
    with pytest.raises(BundleError, match=DAMAGED):
        read_subject(place).load(ignore_progress)
    opened = open_bundle(place)
    with pytest.raises(BundleError, match=DAMAGED):
        api.verify(opened, None, [[1]])  # type: ignore[arg-type]


def test_intact_bundle_is_hashed_once(place: Path) -> None:
    assert [count_hashed(place) > 0 for _ in range(3)] == [True, False, False]
    assert count_hashed(place, again=True) > 0


def test_bundle_that_was_touched_or_moved_is_hashed_again(place: Path) -> None:
    assert count_hashed(place)
    os.utime(place / WEIGHTS)
    assert count_hashed(place)
    moved = place.rename(place.with_name("moved"))
    assert count_hashed(moved)


def test_exported_bundle_is_known(place: Path) -> None:
    made = lfm2_deploy.export("synthetic:tiny-dense", place.with_name("made"), precision="int8")
    assert made.large_files
    assert count_hashed(made.path) == 0


def test_bundle_of_small_files_alone_is_not_hashed_twice(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_HASHED_AT_OPEN", 2**23)
    assert count_hashed(place) == 0
