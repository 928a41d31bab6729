"""Servers to test against: apps without a network, and real ones on ports of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from lfm2_deploy.server.app import make_app
from lfm2_deploy.server.host import Host, listen
from lfm2_deploy.server.settings import Settings

from .fake_engine import FakeEngine, Reply, say


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    host: Host
    engine: Any
    thread: threading.Thread

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20)


@contextmanager
def run_server(engine: Any, *, grace: float = 5.0, **settings: Any) -> Iterator[Running]:
    app = make_app(engine, Settings(names=("tiny",), **settings))
    listener, host, started = listen("127.0.0.1", 0), Host(app, grace_seconds=grace), []
    begun = threading.Event()

    def begin(loop: Any) -> None:
        started.append(loop)
        begun.set()

    thread = threading.Thread(target=host.run_on, args=(listener, begin), daemon=True)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    assert begun.wait(20)
    try:
        yield Running(url, host, engine, thread)
    finally:
        host.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


Serve = Callable[..., Running]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers with these replies, on a port of its own."""
    with ExitStack() as stack:

        def start(*replies: Reply, engine: Any = None, **settings: Any) -> Running:
            engine = engine or FakeEngine(*(replies or (say("Hello", " there"),)))
            return stack.enter_context(run_server(engine, **settings))

        yield start


@pytest.fixture
def client() -> Callable[..., TestClient]:
    """A client of an app that answers with these replies, without a network."""

    def make(*replies: Reply, engine: Any = None, **settings: Any) -> TestClient:
        engine = engine or FakeEngine(*(replies or (say("Hello", " there"),)))
        app = make_app(engine, Settings(names=("tiny", "alias"), **settings))
        made = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        made.engine = engine
        return made

    return make
