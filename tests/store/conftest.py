"""A store of each test's own, and bundles to fill it with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lfm2_deploy import ModelStore, export
from lfm2_deploy.demo import DEMO_MODEL

from .fake_hub import FakeHub


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4. Treat it as read-only."""
    place = tmp_path_factory.mktemp("bundles") / "demo"
    return export(str(DEMO_MODEL), place).path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """The user's store, empty; caches are of this test alone, too."""
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "caches"))
    return ModelStore()


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to change."""
    return shutil.copytree(bundle, tmp_path / "copied")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub without repositories."""
    with FakeHub() as running:
        yield running


def damage_file(file: Path) -> None:
    """Invert a byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.fixture(scope="session")
def damage() -> Callable[[Path], None]:
    """`damage_file`, for tests."""
    return damage_file
