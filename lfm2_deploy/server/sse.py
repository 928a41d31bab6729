"""Server-sent events: a reply that comes in pieces, and ends what makes them when nobody reads.

Enters: JSON objects, and what to do at the end. Leaves: `data:` lines as OpenAI's clients read
them; a failure on the way is one more of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from lfm2_deploy.server.errors import ApiError, make_api_error

_DONE = "[DONE]"
# Comments that keep a connection alive while a long prompt is read.
_PING_SECONDS = 15
# A client that reads nothing for so long is gone.
_SEND_SECONDS = 60.0

# A named event's name, or "" for one without; and its object.
Piece = tuple[str, Mapping[str, Any]]


class EventStream(EventSourceResponse):
    """A reply of events."""

    def __init__(
        self,
        pieces: AsyncIterator[Piece],
        at_end: Callable[[], None],
        *,
        says_done: bool = True,
        explain: Callable[[ApiError], Piece] | None = None,
    ) -> None:
        """Begin.

        Args:
            pieces: what is sent.
            at_end: called once, whether all was sent, something failed, or the client left.
            says_done: end with OpenAI's "[DONE]".
            explain: the last piece of a stream that failed; {"error": ...} when None.
        """
        lines = _write(pieces, says_done, explain or _explain)
        super().__init__(lines, ping=_PING_SECONDS, sep="\n", send_timeout=_SEND_SECONDS)
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            pass
        finally:
            self._at_end()


async def _write(
    pieces: AsyncIterator[Piece], says_done: bool, explain: Callable[[ApiError], Piece]
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for piece in pieces:
            yield _make_event(piece)
    except Exception as error:
        yield _make_event(explain(make_api_error(error)))
        return
    if says_done:
        yield ServerSentEvent(_DONE, sep="\n")


def _make_event(piece: Piece) -> ServerSentEvent:
    name, value = piece
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    text = json.dumps(value, separators=(",", ":"))
    return ServerSentEvent(text, event=name or None, sep="\n")


def _explain(error: ApiError) -> Piece:
    return "", error.body
