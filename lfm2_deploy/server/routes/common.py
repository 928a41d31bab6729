"""What the routes share: the hub, replies that nobody waits for, documented failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.server.errors import ApiError
from lfm2_deploy.server.hub import Asked, Feed, Hub
from lfm2_deploy.server.schemas.common import ErrorBody
from lfm2_deploy.server.security import REMARK

T = TypeVar("T")

_GONE = 499
_TOLD = {
    400: "The request is to blame; the message says why.",
    401: "A key is needed.",
    403: "This host or web page may not use the server.",
    404: "There is no such model or response.",
    408: "The body or the answer took too long.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    429: "Too many requests wait.",
    500: "The server failed.",
    503: "The model is loading, or the server is shutting down.",
}
GET_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": _TOLD[status]} for status in (401, 403, 404, 503)
}
POST_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": told} for status, told in _TOLD.items()
}


def find_hub(request: Request) -> Hub:
    """The server's hub."""
    hub: Hub = request.app.state.hub
    return hub


def describe_reply(model: type[Any], told: str) -> dict[int | str, dict[str, Any]]:
    """For /openapi.json: a reply that is JSON or a stream of events, and every failure."""
    stream = {"text/event-stream": {"schema": {"description": "Server-sent events."}}}
    return {200: {"model": model, "description": told, "content": stream}, **POST_FAILURES}


async def start_all(hub: Hub, asked: Sequence[Asked]) -> list[Feed]:
    """Begin every answer, or none.

    Raises:
        Lfm2DeployError, ApiError: of the first that cannot be begun.
    """
    feeds: list[Feed] = []
    began = time.monotonic()
    try:
        for one in asked:
            feeds.append(await hub.start(one, began))
    except BaseException:
        cancel_all(feeds)
        raise
    return feeds


def cancel_all(feeds: Sequence[Feed]) -> None:
    """End every answer before its next token."""
    for feed in feeds:
        feed.cancel()


async def wait_unless_gone(request: Request, work: Awaitable[T]) -> T:
    """A result, as long as the client waits for it.

    Raises:
        ApiError: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(_GONE, "the client went away")
        return await task
    finally:
        task.cancel()
        gone.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def leave_remark(request: Request, answers: Sequence[Answer]) -> None:
    """For the access log: how many tokens it was."""
    if answers:
        new = sum(answer.usage.completion_tokens for answer in answers)
        request.scope["state"][REMARK] = f"{answers[0].usage.prompt_tokens}+{new} tokens"
