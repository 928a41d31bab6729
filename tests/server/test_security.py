"""Hosts, origins, keys."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.server.app import make_app
from lfm2_deploy.server.log_lines import LINES
from lfm2_deploy.server.security import is_loopback, resolve_target, split_host
from lfm2_deploy.server.settings import Settings

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("127.0.0.1:8080", {}, 200),
        ("localhost", {}, 200),
        ("LOCALHOST.:1", {}, 200),
        ("[::1]:8080", {}, 200),
        ("evil.example", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("localhost.evil.example", {}, 403),
        ("localhost:evil.example", {}, 403),
        ("[::1].evil.example", {}, 403),
        ("[::1]evil.example:80", {}, 403),
        ("127.0.0.1@evil.example", {}, 403),
        ("evil.example/@localhost", {}, 403),
        ("192.168.1.5", {}, 403),
        ("192.168.1.5", {"host": "0.0.0.0"}, 200),
        ("evil.example", {"host": "0.0.0.0"}, 403),
        ("mine.local", {"host": "0.0.0.0", "hosts": ("mine.local",)}, 200),
        ("any.example", {"hosts": ("*",)}, 200),
    ],
)
def test_host_decides_who_is_answered(
    client: Callable[..., Any], host: str, settings: dict[str, Any], status: int
) -> None:
    made = client(**settings)
    assert made.get("/v1/models", headers={"host": host}).status_code == status
    assert made.post(CHAT, json=BODY, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("http://127.0.0.1", (), 200),  # the page itself
        ("http://127.0.0.1:9999", (), 403),
        ("https://127.0.0.1", (), 403),
        ("https://evil.example", (), 403),
        ("null", (), 403),
        ("https://good.example", ("https://good.example",), 200),
        ("https://good.example.evil", ("https://good.example",), 403),
        ("https://any.example", ("*",), 200),
        ("https://good.example", ("https://GOOD.example:443/",), 200),
        ("http://localhost:3000", ("http://localhost:3000/",), 200),
        ("app://local", ("app://local",), 200),
    ],
)
def test_web_pages_may_call_only_where_allowed(
    client: Callable[..., Any], origin: str, allowed: tuple[str, ...], status: int
) -> None:
    made = client(origins=allowed)
    reply = made.post(CHAT, json=BODY, headers={"origin": origin})
    assert reply.status_code == status
    assert bool(made.engine.calls) == (status == 200)


def test_preflight_is_answered_for_allowed_pages_only(client: Callable[..., Any]) -> None:
    asks = {
        "origin": "https://good.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    allowed = client(origins=("https://good.example",), api_keys=("k",))
    reply = allowed.options(CHAT, headers=asks)
    assert reply.headers["access-control-allow-origin"] == "https://good.example"
    other = allowed.options(CHAT, headers={**asks, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in client().options(CHAT, headers=asks).headers


@pytest.mark.parametrize("allowed", [(), ("https://good.example",)])
def test_refused_preflight_names_the_option_and_is_logged(
    client: Callable[..., Any], capfd: pytest.CaptureFixture[str], allowed: tuple[str, ...]
) -> None:
    asks = {"origin": "https://other.example", "access-control-request-method": "POST"}
    reply = client(origins=allowed, access_log="text").options(CHAT, headers=asks)
    assert reply.status_code == 403
    assert "--allow-origin" in reply.json()["error"]["message"]
    assert "access-control-allow-origin" not in reply.headers
    LINES.flush(10)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"OPTIONS {CHAT} 403 ")
    assert "https://other.example" in line


def test_wrong_key_is_told_from_none(client: Callable[..., Any]) -> None:
    made = client(api_keys=("right",))
    told = {
        key: made.get("/v1/models", headers={"authorization": key} if key else {}).json()
        for key in ("", "Bearer ", "Bearer wrong")
    }
    messages = [told[key]["error"]["message"] for key in told]
    assert [message.partition(":")[0] for message in messages] == [
        "this server needs a key",
        "this server needs a key",
        "the key is none of this server's",
    ]


@pytest.mark.parametrize(
    "origin", ["localhost:3000", "http://a.example/path", "http://", "", "http://a b", "http://u@a"]
)
def test_setting_that_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(Lfm2DeployError, match="no origin"):
        make_app(None, Settings(origins=(origin,)))


def test_preflight_knows_an_origin_given_with_a_slash(client: Callable[..., Any]) -> None:
    asks = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    reply = client(origins=("http://localhost:3000/",)).options(CHAT, headers=asks)
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/v1/models", "localhost", 200),
        ("http://localhost:1/v1/models?x=1", "evil.example", 200),
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost@evil.example/v1/models", "localhost", 403),
        ("http://localhost", "localhost", 200),
        ("localhost/v1/models", "localhost", 404),
    ],
)
def test_target_may_be_a_whole_url(
    serve: Callable[..., Any], target: str, host: str, status: int
) -> None:
    server = serve(api_keys=("k",))
    place = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((place[0], int(place[2])), timeout=10) as connection:
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        connection.sendall(f"{head}Authorization: Bearer k\r\n\r\n".encode())
        assert connection.recv(12) == f"HTTP/1.1 {status}".encode()


def test_whole_url_needs_a_key_as_its_path_does(serve: Callable[..., Any]) -> None:
    server = serve(api_keys=("k",))
    place = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((place[0], int(place[2])), timeout=10) as connection:
        head = "GET http://localhost/v1/models HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 401"


def test_whole_url_is_a_path_and_a_host() -> None:
    scope = {"path": "http://localhost/v1/models", "raw_path": b"http://localhost/v1/models"}
    resolved = resolve_target({**scope, "headers": [(b"host", b"x"), (b"a", b"b")]})
    assert resolved["path"] == "/v1/models"
    assert resolved["raw_path"] == b"/v1/models"
    assert resolved["headers"] == [(b"host", b"localhost"), (b"a", b"b")]


def test_key_is_asked_for_where_there_is_one(client: Callable[..., Any]) -> None:
    made = client(api_keys=("first", "second"))
    for path in ("/v1/models", "/metrics", "/v1/engine"):
        assert made.get(path).status_code == 401
        assert made.get(path, headers={"authorization": "Bearer third"}).status_code == 401
        assert made.get(path, headers={"authorization": "Basic first"}).status_code == 401
        for key in ("first", "second"):
            reply = made.get(path, headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == 200
    reply = made.post(CHAT, json=BODY)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert made.engine.calls == []
    assert made.get("/health").status_code == 200


def test_odd_bytes_in_a_key_are_only_wrong(client: Callable[..., Any]) -> None:
    headers = {"authorization": b"Bearer \xff\xfe"}
    assert client(api_keys=("k",)).get("/v1/models", headers=headers).status_code == 401


def test_every_reply_has_strict_headers(client: Callable[..., Any]) -> None:
    for reply in (client().get("/v1/models"), client().get("/no")):
        assert reply.headers["content-security-policy"].startswith("default-src 'self'")
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.1.2.3", True), ("::1", True), ("0.0.0.0", False), ("a", False)],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_host_header_is_split() -> None:
    assert split_host("[::1]:80") == "::1"
    assert split_host("Name.Example:80") == "name.example"
    assert split_host("") == ""
