"""A Hub on this machine: what huggingface_hub asks of the real one to download a repository."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories by id, each the files of a folder.

    Args:
        repositories: id -> folder.
        stall_after: of these files, so many bytes are sent, and then nothing until `go_on` is set.
        asked: every request but HEAD, in order: its path, and where in the file it begins.
        stalled: set when such a file stands still.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def handler(self) -> type[Handler]:
        """What answers requests."""
        return Handler

    def __enter__(self) -> FakeHub:
        hub = self

        class Own(self.handler):
            """Serves this hub."""

            fake = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, folder: Path) -> dict[str, str]:
        """What makes a program use this hub, with its cache and store in a folder."""
        proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
        inherited = {key: value for key, value in os.environ.items() if key not in proxies}
        return inherited | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "LFM2_DEPLOY_STORE": str(folder / "store"),
        }

    def count_sent(self, name: str) -> list[int]:
        """Where each download of a file began."""
        return [start for path, start in self.asked if path.endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    """Answers what is asked to download; what is sent is up to others."""

    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests' output is not for this."""

    def do_HEAD(self) -> None:
        """Say what a file is."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Send a file, a repository's description or its list of files."""
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = urlsplit(self.path).path
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        if with_body:
            self.fake.asked.append((path, start))
        for name, folder in self.fake.repositories.items():
            if path.startswith(f"/api/models/{name}/tree/"):
                return self.send_json(200, [_describe(file, folder) for file in _list(folder)])
            if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                siblings = [
                    {"rfilename": _describe(file, folder)["path"]} for file in _list(folder)
                ]
                return self.send_json(200, {"id": name, "sha": COMMIT, "siblings": siblings})
            file = folder.joinpath(*path.removeprefix(f"/{name}/resolve/").split("/")[1:])
            if path.startswith(f"/{name}/resolve/") and file.is_file():
                return self._send_file(file, start, with_body)
        return self.send_json(404, {}, {"X-Error-Code": "RepoNotFound"})

    def send_json(self, code: int, value: object, headers: Mapping[str, str] = {}) -> None:
        """Answer with JSON."""
        body = json.dumps(value).encode()
        self.send_response(code)
        for key, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, file: Path, start: int, with_body: bool) -> None:
        content = file.read_bytes()
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not with_body:
            return
        stop = self.fake.stall_after.get(file.name, len(content))
        self.wfile.write(content[start:stop])
        if stop < len(content):
            self.fake.stalled.set()
            self.fake.go_on.wait(60)
            with suppress(OSError):  # nobody listens any more
                self.wfile.write(content[stop:])


def _list(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _describe(file: Path, folder: Path) -> dict[str, object]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": file.stat().st_size,
        "oid": digest,
    }
