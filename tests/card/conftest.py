"""Small made-up bundles, whose cards are written in a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.bundle import Bundle, open_bundle, seal
from lfm2_deploy.card.write import write_card

from ..bundle.made_up import FILES, MADE  # noqa: TID252

Make = Callable[..., Bundle]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A bundle with its card; `changes` to its manifest, `files` beside the usual ones."""

    def make_bundle(name: str = "made-up", files: dict[str, bytes] | None = None, **changes: Any):
        folder = tmp_path / name
        for file, content in {**FILES, **(files or {})}.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        seal(folder, replace(MADE, **changes))
        bundle = open_bundle(folder)
        write_card(bundle)
        return bundle

    return make_bundle
