"""The chat page: the files of `page/`, with headers that keep a browser strict."""

from __future__ import annotations

from pathlib import Path

from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).with_name("page")


def find_page() -> StaticFiles | None:
    """The app that serves the page; None where it is not installed."""
    if not (FOLDER / "index.html").is_file():
        return None
    return StaticFiles(directory=FOLDER, html=True)
