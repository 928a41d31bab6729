"""Sizes and times."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lfm2_deploy.errors import ContextOverflowError
from lfm2_deploy.server import host

from .fake_engine import FakeEngine, Reply, endless, say

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def test_declared_body_too_large_is_refused_unread(client: Callable[..., Any]) -> None:
    reply = client(max_body_bytes=1000).post(CHAT, content=b"x" * 1001, headers=JSON)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "body_too_large"


def test_chunked_body_too_large_is_refused_as_it_comes(serve: Callable[..., Any]) -> None:
    def pour() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    server = serve(max_body_bytes=1000)
    with server.http as http:
        assert http.post(CHAT, content=pour(), headers=JSON).status_code == 413


def test_body_that_trickles_is_given_up(serve: Callable[..., Any]) -> None:
    server = serve(body_seconds=0.2)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    assert b" 408 " in _send(server.url, f"{head}Content-Length: 100\r\n\r\n{{".encode())


def test_connection_without_headers_is_closed(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_HEADER_SECONDS", 0.2)
    server = serve()
    assert _send(server.url, b"GET /health HTTP/1.1\r\nHost: 127") == b""


def test_endless_headers_are_refused(serve: Callable[..., Any]) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Filler: "
    answer = _send(serve().url, head + b"x" * 50_000)
    assert b" 400 " in answer


def test_request_smuggled_after_a_refusal_is_not_answered(serve: Callable[..., Any]) -> None:
    server = serve(max_body_bytes=10)
    inner = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(inner)}\r\n\r\n"
    assert _send(server.url, head.encode() + inner).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("streams", [False, True])
def test_answer_that_takes_too_long_is_cut(serve: Callable[..., Any], streams: bool) -> None:
    server = serve(endless(), request_seconds=0.3)
    with server.http as http:
        reply = http.post(CHAT, json={**BODY, "stream": streams})
    assert reply.status_code == (200 if streams else 408)
    assert '"timeout"' in reply.text
    if not streams:  # OpenAI's clients would ask again
        assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("streams", [False, True])
def test_time_of_an_answer_counts_from_its_preparation(
    client: Callable[..., Any], streams: bool
) -> None:
    made = client(request_seconds=0.2)
    made.engine.preparing = 60
    began = time.monotonic()
    reply = made.post(CHAT, json={**BODY, "stream": streams})
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "timeout")
    assert time.monotonic() - began < 20


def test_more_tokens_than_the_server_gives_are_refused(client: Callable[..., Any]) -> None:
    made = client(max_tokens=50)
    assert made.post(CHAT, json={**BODY, "max_tokens": 51}).status_code == 400
    assert made.post(CHAT, json={**BODY, "max_tokens": 50}).status_code == 200


def test_length_left_out_is_the_cap_or_what_is_left(client: Callable[..., Any]) -> None:
    made = client(max_tokens=50)
    made.post(CHAT, json=BODY)
    assert made.engine.calls[-1].overrides["max_new_tokens"] == 50
    overflow = Reply(refusal=ContextOverflowError("no room"))
    engine = FakeEngine(overflow, say("short"))
    made = client(engine=engine, max_tokens=50)
    assert made.post(CHAT, json=BODY).status_code == 200
    assert "max_new_tokens" not in engine.calls[-1].overrides


def test_idle_connection_makes_room_for_a_new_one(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_MOST_CONNECTIONS", 3)
    server = serve()
    with ExitStack() as stack:
        silent = [stack.enter_context(_connect(server.url)) for _ in range(3)]
        with server.http as http:
            assert http.get("/health").status_code == 200
        assert silent[0].recv(1) == b""  # the oldest
        silent[2].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert silent[2].recv(12) == b"HTTP/1.1 200"


def test_busy_connections_make_no_room(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_MOST_CONNECTIONS", 1)
    server = serve(endless())
    with server.http as http, http.stream("POST", CHAT, json={**BODY, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        with server.http as other:
            assert other.get("/health").status_code == 503
        assert next(line for line in lines if "on " in line)


def test_client_that_reads_no_reply_is_left(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_READ_SECONDS", 0.2)
    server = serve(say("x" * 20_000_000))
    body = json.dumps(BODY)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with _connect(server.url) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        deadline = time.monotonic() + 10
        while server.host.server_state.connections:
            assert time.monotonic() < deadline, "it kept its place"
            time.sleep(0.02)


def test_client_that_reads_slowly_gets_its_reply(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_READ_SECONDS", 0.2)
    server = serve(say("x" * 20_000_000))
    with server.http as http, http.stream("POST", CHAT, json=BODY) as reply:
        read = 0
        for piece in reply.iter_bytes(2_000_000):
            read += len(piece)
            time.sleep(0.05)  # half a second, several times what one that reads nothing has
    assert read > 20_000_000


def _connect(url: str) -> socket.socket:
    name, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((name, int(port)), timeout=10)


def _send(url: str, request: bytes) -> bytes:
    """Everything that a server says until it closes the connection."""
    with _connect(url) as connection:
        connection.sendall(request)
        if request.endswith(b"\r\n\r\n"):
            connection.shutdown(socket.SHUT_WR)
        told = b""
        try:
            while piece := connection.recv(65536):
                told += piece
        except ConnectionResetError:
            pass
        return told
