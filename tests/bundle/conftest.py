"""A made-up bundle on disk, and a way to change its manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.bundle import MANIFEST

from .made_up import write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle alone in its folder."""
    path = tmp_path / "parent" / "made-up"
    write(path)
    return path


@pytest.fixture
def edit_manifest(path: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change the bundle's manifest.json in place."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        raw = json.loads((path / MANIFEST).read_text())
        change(raw)
        (path / MANIFEST).write_text(json.dumps(raw))

    return edit
