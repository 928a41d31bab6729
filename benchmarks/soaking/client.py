"""One request over HTTP, watched: what came, when, and which promise was broken.

Enters: an `Ask`. Leaves: an `Outcome`; whatever happens, within a time bound.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from soaking.asks import Ask

# How a server refuses what it has no room for now.
BUSY = frozenset({429, 503})
_JSON = {"content-type": "application/json"}


class BrokenPromiseError(Exception):
    """The server did what it must not."""


@dataclass(slots=True)
class Outcome:
    """What came of one request.

    Args:
        ask: what was asked.
        status: of the reply; None where the client left before it had all of it.
        fault: the promise that was broken.
        first: seconds to the first token of a stream.
        total: seconds to the end.
        events: pieces of a stream that held text.
        usage: prompt and completion tokens, where told.
        texts: of each answer.
        tokens: of the first answer, each as bytes, where log-probabilities tell them.
        calls: name and arguments of tools that were called.
        reasons: why each answer ended.
        reached: the server may have counted a request that the client did not see the end of.
    """

    ask: Ask
    status: int | None = None
    fault: str | None = None
    first: float | None = None
    total: float = 0.0
    events: int = 0
    usage: tuple[int, int] | None = None
    texts: dict[int, str] = field(default_factory=dict)
    tokens: list[bytes] = field(default_factory=list)
    calls: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    reached: bool = False
    ended: bool = False


class Client:
    """Sends requests to one server."""

    def __init__(self, url: str, documented: Mapping[tuple[str, str], frozenset[int]]) -> None:
        """Open nothing yet.

        Args:
            url: of the server.
            documented: statuses of each method and path, of /openapi.json.
        """
        self._url = url
        self._http = self._open()
        self._address = (self._http.base_url.host, self._http.base_url.port)
        self._documented = documented

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    def _open(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncClient(base_url=self._url, timeout=None, limits=limits, trust_env=False)

    async def send(self, ask: Ask, most_seconds: float) -> Outcome:
        """Ask, and judge what comes."""
        outcome = await self._send(ask, most_seconds)
        if outcome.reached or outcome.fault:
            # A connection that was left in the middle must not be in the way of what follows.
            await self._http.aclose()
            self._http = self._open()
        return outcome

    async def _send(self, ask: Ask, most_seconds: float) -> Outcome:
        outcome, began = Outcome(ask), time.monotonic()
        ways = {
            "whole": self._take_whole,
            "stream": self._take_stream,
            "leave": self._take_stream,
            "drop": self._drop,
            "raw": self._send_raw,
        }
        try:
            async with asyncio.timeout(most_seconds):
                await ways[ask.manner](outcome, began)
                self._judge(outcome)
        except TimeoutError:
            pool = getattr(self._http._transport, "_pool", None)
            outcome.fault = f"{ask.manner} {ask.path}: no end within {most_seconds:g} s ({pool})"
        except BrokenPromiseError as error:
            outcome.fault = str(error)
        except httpx.HTTPError as error:
            self._excuse(outcome, error)
        except (KeyError, ValueError, TypeError) as error:
            outcome.fault = f"{type(error).__name__}: {error}"
        outcome.total = time.monotonic() - began
        if outcome.fault:
            outcome.reached = True
        return outcome

    async def _take_whole(self, outcome: Outcome, began: float) -> None:
        ask = outcome.ask
        headers = {**(_JSON if ask.body is not None else {}), **ask.headers}
        reply = await self._http.request(ask.method, ask.path, content=ask.body, headers=headers)
        outcome.status, outcome.ended = reply.status_code, True
        if reply.headers["content-type"].startswith("application/json"):
            self._read_whole(outcome, reply.json())
        elif ask.path != "/metrics":
            raise BrokenPromiseError(f"{ask.path} is {reply.headers['content-type']}")

    async def _take_stream(self, outcome: Outcome, began: float) -> None:
        ask = outcome.ask
        sent = self._http.stream(ask.method, ask.path, content=ask.body, headers=_JSON)
        async with sent as reply:
            if reply.status_code != 200:
                await reply.aread()
                outcome.status = reply.status_code
                self._read_whole(outcome, reply.json())
                return
            count = 0
            async for line in reply.aiter_lines():
                if ask.manner == "leave" and count >= ask.after:
                    outcome.reached = True
                    return
                if line.startswith("data: "):
                    count += 1
                    _read_piece(outcome, line[6:], began)
        if not outcome.ended:
            raise BrokenPromiseError("a stream broke off")
        outcome.status = 200

    async def _drop(self, outcome: Outcome, began: float) -> None:
        try:
            async with asyncio.timeout(outcome.ask.after):
                await self._take_whole(outcome, began)
        except TimeoutError:
            outcome.status, outcome.reached = None, True

    async def _send_raw(self, outcome: Outcome, began: float) -> None:
        assert outcome.ask.body is not None
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            with suppress(ConnectionError):
                writer.write(outcome.ask.body)
                await writer.drain()
                async with asyncio.timeout(outcome.ask.after):
                    await reader.read()
        except TimeoutError:
            pass
        finally:
            writer.close()
        outcome.reached = bool(outcome.ask.n)

    def _read_whole(self, outcome: Outcome, body: Any) -> None:
        if outcome.status != 200:
            error = body["error"] if outcome.ask.path != "/health" else None
            if error and error.keys() != {"message", "type", "param", "code"}:
                raise BrokenPromiseError(f"an error without its fields: {error}")
            return
        for choice in body.get("choices", ()):
            _read_choice(outcome, choice, choice.get("message", choice))
        if body.get("object") == "response":
            outcome.texts[0] = _join_output(body)
        outcome.usage = _read_usage(body.get("usage"))

    def _judge(self, outcome: Outcome) -> None:
        """See that what was promised has come."""
        ask, status = outcome.ask, outcome.status
        if status is None:
            return
        told = self._documented.get((ask.method, ask.path), frozenset({404, 405}))
        # What does not fit or is no request is refused before it is looked where it goes.
        if status not in told | BUSY or status == 500:
            raise BrokenPromiseError(f"status {status} is none of {sorted(told)}")
        if status in BUSY or not ask.statuses:
            return
        if status not in ask.statuses:
            raise BrokenPromiseError(f"status {status}, expected {sorted(ask.statuses)}")
        # What was cut for length is whole up to its last call.
        cut = {index for index, reason in outcome.reasons.items() if reason == "length"}
        if ask.check is not None and not cut:
            ask.check([*outcome.texts.values()], [*outcome.calls.values()])
        elif ask.check is not None and len(outcome.calls) > 1:
            ask.check([], [*outcome.calls.values()][:-1])

    def _excuse(self, outcome: Outcome, error: httpx.HTTPError) -> None:
        """A refused body need not be taken in to its end."""
        if outcome.ask.kind == "hostile" and len(outcome.ask.body or b"") > 2**20:
            outcome.reached = True
            return
        outcome.fault = f"{type(error).__name__}: {error}"


def _read_piece(outcome: Outcome, data: str, began: float) -> None:
    if data == "[DONE]":
        outcome.ended = True
        return
    piece = json.loads(data)
    if "error" in piece and "choices" not in piece and "type" not in piece:
        outcome.ended = True
        raise BrokenPromiseError(f"a stream ended with {piece['error']}")
    for choice in piece.get("choices", ()):
        _read_choice(outcome, choice, choice.get("delta", choice))
    kind = piece.get("type", "")
    if kind.endswith("text.delta"):
        outcome.texts[0] = outcome.texts.get(0, "") + piece["delta"]
    if kind in ("response.completed", "response.incomplete", "response.failed"):
        outcome.ended = True
        outcome.usage = _read_usage(piece["response"]["usage"])
        if kind == "response.failed" or _join_output(piece["response"]) != outcome.texts.get(0, ""):
            raise BrokenPromiseError(f"a response ended with {data[:300]}")
    outcome.usage = _read_usage(piece.get("usage")) or outcome.usage
    if outcome.texts.get(0) or outcome.calls:
        outcome.events += 1
        outcome.first = outcome.first or time.monotonic() - began


def _read_choice(outcome: Outcome, choice: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    index = choice["index"]
    if choice.get("finish_reason"):
        outcome.reasons[index] = choice["finish_reason"]
    text = part.get("content") if "text" not in choice else choice["text"]
    outcome.texts[index] = outcome.texts.get(index, "") + (text or "")
    for place, call in enumerate(part.get("tool_calls") or ()):
        known = outcome.calls.setdefault(
            (index, call.get("index", place)), {"name": "", "arguments": ""}
        )
        for name, value in call["function"].items():
            known[name] += value
    logprobs = choice.get("logprobs")
    if logprobs and index == 0:
        if "tokens" in logprobs:
            outcome.tokens += [token.encode() for token in logprobs["tokens"]]
        else:
            outcome.tokens += [bytes(entry["bytes"]) for entry in logprobs["content"]]


def _join_output(response: Mapping[str, Any]) -> str:
    parts = [part for item in response["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in parts)


def _read_usage(usage: Mapping[str, Any] | None) -> tuple[int, int] | None:
    if not usage:
        return None
    if "input_tokens" in usage:
        return usage["input_tokens"], usage["output_tokens"]
    return usage["prompt_tokens"], usage["completion_tokens"]
