"""A server for a browser: folders at paths, and an empty page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}


@contextmanager
def serve_folders(folders: Mapping[str, Path]) -> Iterator[str]:
    """Serve each folder under its name on a free port; gives the address.

    Args:
        folders: first part of the path -> folder; all else is an empty page.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, rest = self.path.partition("?")[0].lstrip("/").partition("/")
            content, suffix = b"<!doctype html><title>empty</title>", ".html"
            if name in folders:
                file = folders[name] / rest
                if ".." in file.parts or not file.is_file():
                    self.send_error(404)
                    return
                content, suffix = file.read_bytes(), file.suffix
            self.send_response(200)
            self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
