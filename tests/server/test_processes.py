"""Servers in processes of their own, that are killed, ended, left and starved in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lfm2_deploy import ModelStore
from lfm2_deploy.api import export
from lfm2_deploy.demo import DEMO_MODEL

PATIENCE = 60.0
LONG = {"prompt": "The king", "ignore_eos": True, "stream": True, "temperature": 0}
SHORT = {"prompt": "The king", "max_tokens": 8, "temperature": 0}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")


@dataclass
class Process:
    """`lfm2-deploy serve` that runs."""

    url: str
    running: subprocess.Popen[str]

    def ask(self) -> str:
        reply = httpx.post(f"{self.url}/v1/completions", json=SHORT, timeout=PATIENCE)
        return reply.json()["choices"][0]["text"]

    def count(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/health", timeout=PATIENCE).json()


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(str(DEMO_MODEL), tmp_path_factory.mktemp("served") / "demo").path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and caches of this test's own."""
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path


@pytest.fixture
def start(places: Path) -> Iterator[Start]:
    """Serve a bundle, or a name in the store."""
    with ExitStack() as stack:

        def run(bundle: Path | str, *options: str, **more: Any) -> Process:
            command = [sys.executable, "-m", "lfm2_deploy", "serve", str(bundle)]
            command += ["--port", "0", "--log", "off", *options]
            running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)
            stack.callback(running.wait)
            stack.callback(running.kill)
            assert running.stdout is not None
            line = running.stdout.readline()
            assert "API at " in line, line
            return Process(line.partition("API at ")[2].partition("/v1")[0], running)

        yield run


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def read_stream(server: Process, begun: threading.Event, lines: list[str]) -> None:
    """Take a stream to its end, which may be that the server is no more."""
    with (
        suppress(httpx.HTTPError),
        httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=PATIENCE) as reply,
    ):
        for line in reply.iter_lines():
            lines.append(line)
            if line:
                begun.set()


def begin_streams(server: Process, count: int) -> list[tuple[threading.Thread, list[str]]]:
    """So many streams, each past its first token."""
    streams = []
    for _ in range(count):
        begun, lines = threading.Event(), list[str]()
        thread = threading.Thread(target=read_stream, args=(server, begun, lines), daemon=True)
        thread.start()
        assert begun.wait(PATIENCE)
        streams.append((thread, lines))
    return streams


def test_signal_under_load_ends_every_stream_with_a_word(start: Start, bundle: Path) -> None:
    server = start(bundle, "--grace", "0.3")
    streams = begin_streams(server, 4)
    server.running.send_signal(signal.SIGTERM)
    assert server.running.wait(PATIENCE) == 0
    for thread, lines in streams:
        thread.join(PATIENCE)
        last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
        assert last["error"]["code"] == "shutting_down"


def test_signal_lets_short_answers_end(start: Start, bundle: Path) -> None:
    server = start(bundle, "--grace", "60", "--max-tokens", "300")
    streams = begin_streams(server, 2)
    server.running.send_signal(signal.SIGTERM)
    assert server.running.wait(PATIENCE) == 0
    for thread, lines in streams:
        thread.join(PATIENCE)
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_server_that_was_killed_starts_again_on_the_same_store(start: Start, bundle: Path) -> None:
    store = ModelStore()
    store.pull(str(bundle), name="mine")
    first = start("mine")
    answer = first.ask()
    begin_streams(first, 2)
    first.running.kill()
    first.running.wait(PATIENCE)
    second = start("mine")
    assert second.ask() == answer
    assert [model.name for model in store.list()] == ["mine"]
    second.running.send_signal(signal.SIGTERM)
    assert second.running.wait(PATIENCE) == 0
    # Nobody holds it any more, the killed one included.
    store.remove("mine")


@pytest.mark.parametrize("resets", [True, False])
def test_client_that_is_killed_frees_its_place(start: Start, bundle: Path, resets: bool) -> None:
    """The system closes a dead program's sockets, by a reset where something was unread."""
    server = start(bundle, "--max-running", "1")
    address = httpx.URL(server.url)
    content = json.dumps(LONG).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.host}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((address.host, address.port), PATIENCE) as client:
        client.sendall(head.encode() + content)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        wait_for(lambda: server.count()["running"] == 1)
        linger = struct.pack("ii", int(resets), 0)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wait_for(lambda: server.count()["running"] == 0)
    assert server.ask()


def test_two_servers_share_a_bundle(start: Start, bundle: Path) -> None:
    one, other = start(bundle), start(bundle)
    assert one.ask() == other.ask()
    one.running.kill()
    assert other.ask()


def test_folder_for_caches_that_cannot_be_made_is_done_without(
    start: Start, bundle: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places / "file").write_text("")
    # Below a file there is no folder, not for an administrator either.
    monkeypatch.setenv("XDG_CACHE_HOME", str(places / "file" / "caches"))
    assert start(bundle).ask()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are as on Linux")
@pytest.mark.parametrize("stored", [True, False])
def test_full_disk_is_done_without(start: Start, bundle: Path, stored: bool) -> None:
    import resource

    ModelStore().pull(str(bundle), name="mine")

    def allow_no_file_to_grow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    served = "mine" if stored else bundle
    assert start(served, preexec_fn=allow_no_file_to_grow, stderr=subprocess.DEVNULL).ask()


def test_standard_error_that_nobody_reads_stops_nothing(start: Start, bundle: Path) -> None:
    """A desktop app that starts a server and closes its end of the pipe."""
    read, write = os.pipe()
    server = start(bundle, "--log", "text", stderr=write)
    os.close(write)
    os.close(read)
    for _ in range(3):
        assert server.ask()
    server.running.send_signal(signal.SIGTERM)
    assert server.running.wait(PATIENCE) == 0
