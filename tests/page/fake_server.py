"""A server that speaks the API and answers what a test scripts; it serves the real page.

Enters: replies. Leaves: the requests that came. No model is loaded.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).parents[2] / "lfm2_deploy" / "server" / "page"
# Trusted types on top: a page that parses a text as HTML anywhere fails at once.
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'"
)
ENGINE = {
    "model": "LFM2-1.2B-Instruct",
    "device": "CPU",
    "runtime": "ort",
    "precision": "int4",
    "context_length": 32768,
    "notes": ["8 threads"],
    "driver": "onnxruntime 1.32.0",
    "has_chat_template": True,
    "supports_tools": True,
    "supports_reasoning": True,
    "defaults": {"temperature": 0.3, "top_p": 1.0, "min_p": 0.15},
}
USAGE = {
    "prompt_tokens": 1200,
    "completion_tokens": 30,
    "total_tokens": 1230,
    "x_lfm2": {"tokens_per_second": 34.25, "prompt_tokens_per_second": 512.0, "reused_tokens": 96},
}


@dataclass
class Reply:
    """What one request is answered with.

    Args:
        deltas: of the choice, a chunk each.
        finish: the reason told at the end.
        status: another one than 200 comes with `error` and no deltas.
        error: sent in the stream after the deltas, or with `status`.
        hold: the stream waits for it after the deltas.
        pause: seconds between deltas.
        usage: instead of the usual one.
    """

    deltas: Sequence[dict[str, Any]] = ()
    finish: str = "stop"
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    pause: float = 0.0
    usage: dict[str, Any] | None = None


def say(text: str, **more: Any) -> Reply:
    """Reply with this text, a few characters a chunk."""
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    return Reply([{"content": piece} for piece in pieces], **more)


def call(*calls: tuple[str, str], text: str = "", finish: str = "tool_calls") -> Reply:
    """Reply with calls of (name, arguments), arguments in two pieces."""
    deltas: list[dict[str, Any]] = [{"content": text}] if text else []
    for index, (name, arguments) in enumerate(calls):
        half = len(arguments) // 2
        begin = {"name": name, "arguments": arguments[:half]}
        deltas.append({"tool_calls": [{"index": index, "id": f"call_{name}", "function": begin}]})
        rest = {"index": index, "function": {"arguments": arguments[half:]}}
        deltas.append({"tool_calls": [rest]})
    return Reply(deltas, finish=finish)


class FakeServer:
    """Answers in order what `replies` holds; then with "Yes." for ever."""

    def __init__(self) -> None:
        self.forget()
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/"

    def forget(self) -> None:
        """Be as new, for another test."""
        self.engine: dict[str, Any] = copy.deepcopy(ENGINE)
        self.replies: deque[Reply] = deque()
        self.requests: list[dict[str, Any]] = []
        self.key: str | None = None
        self.disconnected = threading.Event()

    def start(self) -> None:
        """Serve from a thread, until `stop`."""
        options = {"port": self.port, "log_level": "critical", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(self._application(), **options))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < until, "the fake server did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        """Be gone."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def _application(self) -> Starlette:
        routes = [
            Route("/health", lambda request: JSONResponse({"status": "ok"})),
            Route("/v1/models", self._models),
            Route("/v1/engine", self._tell_engine),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
        return Starlette(routes=routes, middleware=[Middleware(_Policy)])

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "wrong key", "code": "invalid_api_key"}}, 401)

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"data": [{"id": self.engine["model"]}]})

    async def _tell_engine(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(self.engine)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, lambda delta: {"delta": delta})

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, lambda delta: {"text": delta["content"]})

    async def _answer(self, request: Request, shape: Any) -> Response:
        if refused := self._refused(request):
            return refused
        self.requests.append(await request.json())
        reply = self.replies.popleft() if self.replies else say("Yes.")
        if reply.status != 200:
            return JSONResponse({"error": reply.error}, reply.status, reply.headers)
        return StreamingResponse(self._stream(reply, shape), media_type="text/event-stream")

    async def _stream(self, reply: Reply, shape: Any) -> AsyncIterator[str]:
        try:
            for delta in reply.deltas:
                yield _event({"choices": [{"index": 0, "finish_reason": None, **shape(delta)}]})
                await asyncio.sleep(reply.pause)
            while reply.hold and not reply.hold.is_set():
                await asyncio.sleep(0.01)
            if reply.error:
                yield _event({"error": reply.error})
                return
            end = {"index": 0, "finish_reason": reply.finish, **shape({"content": ""})}
            yield _event({"choices": [end]})
            yield _event({"choices": [], "usage": reply.usage or USAGE})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


class _Policy:
    """Adds the content security policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-security-policy", POLICY.encode()))
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
