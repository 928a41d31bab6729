"""Clients that go away, and servers that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .conftest import run_server
from .fake_engine import FakeEngine, endless, say

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
# Longer than any step here takes on a busy machine; waits end as soon as they can.
PATIENCE = 10.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_stream_whose_client_leaves_is_cancelled(serve: Callable[..., Any]) -> None:
    server = serve(endless())
    with (
        server.http as http,
        http.stream("POST", CHAT, json={**BODY, "stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        while "on " not in next(lines):
            pass
        assert server.engine.running == 1
    wait_for(lambda: server.engine.running == 0)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_whole_answer_whose_client_leaves_is_cancelled(
    serve: Callable[..., Any], path: str
) -> None:
    server = serve(endless())
    body = {CHAT: BODY, "/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}[path]
    with server.http as http, pytest.raises(httpx.ReadTimeout):
        http.post(path, json=body, timeout=0.3)
    assert server.engine.calls
    wait_for(lambda: server.engine.running == 0)


def test_running_answer_ends_well_within_the_grace_period() -> None:
    engine = FakeEngine(say(*["word "] * 20, pace=0.05))
    with run_server(engine) as server, server.http as http:
        found: list[httpx.Response] = []
        ask = threading.Thread(target=lambda: found.append(http.post(CHAT, json=BODY)))
        ask.start()
        wait_for(lambda: engine.running == 1)
        server.host.stop()
        # A new connection is told so, as long as the answer runs.
        wait_for(lambda: httpx.get(f"{server.url}/health").json()["status"] == "draining")
        refused = httpx.post(f"{server.url}{CHAT}", json=BODY)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        ask.join(PATIENCE)
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
    assert found[0].json()["choices"][0]["message"]["content"] == "word " * 20


def test_answer_beyond_the_grace_period_is_cut_with_a_word() -> None:
    engine = FakeEngine(endless())
    with (
        run_server(engine, grace=0.2) as server,
        server.http as http,
        http.stream("POST", CHAT, json={**BODY, "stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        server.host.stop()
        last = [line for line in lines if line][-1]
        assert "shutting_down" in last
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
    assert engine.running == 0


def test_second_signal_does_not_wait() -> None:
    engine = FakeEngine(endless())
    with (
        run_server(engine, grace=60) as server,
        server.http as http,
        http.stream("POST", CHAT, json={**BODY, "stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        server.host.handle_exit(2, None)
        server.host.handle_exit(2, None)
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
        assert server.host.was_forced


def test_requests_before_the_model_is_there_are_told_to_wait(client: Callable[..., Any]) -> None:
    from starlette.testclient import TestClient

    from lfm2_deploy.server.app import make_app

    app = make_app(None)
    made = TestClient(app, base_url="http://127.0.0.1")
    assert made.get("/health").status_code == 503
    assert made.get("/health").json()["status"] == "loading"
    assert made.get("/v1/models").status_code == 200
    assert made.get("/metrics").status_code == 200
    reply = made.post(CHAT, json=BODY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "loading")
    assert "retry-after" in reply.headers
    app.state.hub.open(FakeEngine(say("x")))
    assert made.get("/health").status_code == 200
    assert made.post(CHAT, json=BODY).status_code == 200
