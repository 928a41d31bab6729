"""The chat page: the files of `page/`, each at an address of its own, and no others."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"


def has_page() -> bool:
    """Whether the page is installed."""
    return (FOLDER / _INDEX).is_file()


def add_page(app: FastAPI) -> None:
    """Serve the page at "/", where it is installed.

    Not a mount, which would take the place of what is no address, or another method's.
    """
    if not has_page():
        return
    files = StaticFiles(directory=FOLDER)
    for file in FOLDER.rglob("*"):
        if file.is_file():
            name = file.relative_to(FOLDER).as_posix()
            _add_file(app, files, "" if name == _INDEX else name, name)


def _add_file(app: FastAPI, files: StaticFiles, address: str, name: str) -> None:
    async def send(request: Request) -> Response:
        reply = await files.get_response(name, request.scope)
        # Kept, but asked about: a newer version of this package has a newer page.
        reply.headers["cache-control"] = "no-cache"
        return reply

    app.add_route(f"/{address}", send, methods=["GET", "HEAD"], include_in_schema=False)
