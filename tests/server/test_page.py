"""The chat page's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.server import page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "page" / "parts").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<title>page</title>")
    (tmp_path / "page" / "parts" / "app.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.setattr(page, "FOLDER", tmp_path / "page")
    return tmp_path


def test_page_and_its_files_are_served_without_a_key(
    folder: Path, client: Callable[..., Any]
) -> None:
    made = client(api_keys=("k",))
    assert "page" in made.get("/").text
    script = made.get("/parts/app.js")
    assert "javascript" in script.headers["content-type"]
    again = made.get("/parts/app.js", headers={"if-none-match": script.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/%2e%2e/secret.txt", "/parts/../../secret.txt"]
)
def test_nothing_beside_the_page_is_served(
    folder: Path, client: Callable[..., Any], path: str
) -> None:
    assert "secret" not in client().get(path).text


def test_page_can_be_left_out(folder: Path, client: Callable[..., Any]) -> None:
    assert client(serves_page=False).get("/").status_code == 404
