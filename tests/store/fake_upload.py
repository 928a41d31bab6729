"""The same Hub, which takes uploads: what huggingface_hub asks of the real one for a commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from .fake_hub import COMMIT, FakeHub, Handler

# Who may do what; of others the Hub says 401.
WRITER, READER = "hf_writer", "hf_reader"
# Larger files are sent aside, by their hash.
_LARGE_BYTES = 10_000


@dataclass
class UploadHub(FakeHub):
    """A Hub that takes uploads.

    Args:
        place: where new repositories and large files are kept.
        made: what each new repository was asked to be: id -> "private", or "".
        sent: hashes of large files in the order they were sent.
        commits: messages, branch before each: "main: a message".
        break_after: large files that are taken before the Hub fails; None for all.
    """

    place: Path = field(default_factory=Path)
    made: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    break_after: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def handler(self) -> type[Handler]:
        return UploadHandler

    def blob(self, digest: str) -> Path:
        """Where a large file of that hash is kept."""
        return self.place / "blobs" / digest


class UploadHandler(Handler):
    """Answers what an upload asks."""

    fake: UploadHub

    def do_POST(self) -> None:  # noqa: N802
        """Make a repository or a branch, say how files are to be sent, take a commit."""
        path, body = urlsplit(self.path), self._read_body()
        route = path.path
        if route == "/api/validate-yaml":
            return self._validate(json.loads(body))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (WRITER, READER):
            return self.send_json(401, {"error": "Invalid credentials"})
        if token == READER:
            return self.send_json(403, {"error": "no right to write"})
        if route == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/([^/]+)", route):
            name, what, revision = found.groups()
            if name not in self.fake.repositories:
                return self.send_json(404, {}, {"X-Error-Code": "RepoNotFound"})
            if what == "preupload":
                return self.send_json(
                    200, {"files": list(map(_choose_way, json.loads(body)["files"]))}
                )
            if what == "branch":
                return self.send_json(200, {})
            return self._commit(name, revision, body, "create_pr=1" in path.query)
        return self.send_json(200, self._batch(json.loads(body)))

    def do_PUT(self) -> None:  # noqa: N802
        """Take a large file."""
        digest = self.path.rpartition("/")[2]
        content = self._read_body()
        assert hashlib.sha256(content).hexdigest() == digest
        with self.fake.lock:
            most = self.fake.break_after
            if most is not None and len(self.fake.sent) >= most:
                return self.send_json(400, {"error": "broken"})
            self.fake.sent.append(digest)
        self.fake.blob(digest).parent.mkdir(parents=True, exist_ok=True)
        self.fake.blob(digest).write_bytes(content)
        return self.send_json(200, {})

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _validate(self, asked: dict[str, str]) -> None:
        """As the Hub does: the metadata must be YAML, and an object."""
        try:
            fine = isinstance(yaml.safe_load(asked["content"].split("---")[1]), dict)
        except yaml.YAMLError:
            fine = False
        errors = [] if fine else [{"message": "metadata is no YAML object"}]
        self.send_json(200 if fine else 400, {"errors": errors, "warnings": []})

    def _create(self, asked: dict[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        self.fake.made[name] = asked.get("visibility", "")
        folder = self.fake.place / "repositories" / name
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("")
        self.fake.repositories[name] = folder
        self.send_json(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def _batch(self, asked: dict[str, object]) -> dict[str, object]:
        host = self.headers["Host"]
        objects = asked["objects"]
        assert isinstance(objects, list)
        answers = []
        for one in objects:
            upload = {"upload": {"href": f"http://{host}/put/{one['oid']}"}}
            there = self.fake.blob(one["oid"]).is_file()
            answers.append(one if there else {**one, "actions": upload})
        return {"transfer": "basic", "objects": answers}

    def _commit(self, name: str, revision: str, body: bytes, is_request: bool) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        self.fake.commits.append(f"{revision}: {lines[0]['value']['summary']}")
        for line in [] if is_request or revision != "main" else lines[1:]:
            self._apply(self.fake.repositories[name], line["key"], line["value"])
        page = f"http://{self.headers['Host']}/{name}"
        answer = {"commitUrl": f"{page}/commit/{COMMIT}", "commitOid": COMMIT}
        request = {"pullRequestUrl": f"{page}/discussions/1"} if is_request else {}
        self.send_json(200, answer | request)

    def _apply(self, folder: Path, key: str, value: dict[str, str]) -> None:
        file = folder / value["path"]
        file.parent.mkdir(exist_ok=True)
        if key == "deletedFile":
            file.unlink()
        elif key == "lfsFile":
            shutil.copyfile(self.fake.blob(value["oid"]), file)
        else:
            file.write_bytes(base64.b64decode(value["content"]))


def _choose_way(file: dict[str, object]) -> dict[str, object]:
    assert isinstance(file["size"], int)
    way = "lfs" if file["size"] > _LARGE_BYTES else "regular"
    return {"path": file["path"], "uploadMode": way, "shouldIgnore": False}
