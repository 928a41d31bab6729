"""How much of a request is read, and for how long.

The body is counted as it comes, whatever Content-Length says, and so is the time that it takes: a
client that sends a byte a minute holds nothing for long.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lfm2_deploy.server.errors import ApiError
from lfm2_deploy.server.settings import Settings


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large or too slow."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most = settings.max_body_bytes
        self._seconds = settings.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > self._most:
            await self._too_large().respond()(scope, receive, send)
            return
        await self._app(scope, self._count(receive), send)

    def _count(self, receive: Receive) -> Receive:
        loop = asyncio.get_running_loop()
        deadline, taken, is_whole = loop.time() + self._seconds, 0, False

        async def take() -> Message:
            nonlocal taken, is_whole
            if is_whole:  # what follows is that the client goes away, and may take hours
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(
                    408,
                    f"the body did not come within {self._seconds:g} s",
                    code="body_timeout",
                    headers={"Connection": "close"},
                ) from error
            taken += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if taken > self._most:
                raise self._too_large()
            return message

        return take

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._most:,} bytes: send less, or start the server with a "
            "larger --max-body",
            code="body_too_large",
            headers={"Connection": "close"},
        )
