"""One line and one count a request; never what it held.

Also where headers are put on every reply that browsers shall mind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lfm2_deploy.server.errors import make_api_error
from lfm2_deploy.server.hub import Hub
from lfm2_deploy.server.log_lines import LINES
from lfm2_deploy.server.security import HEADERS, REMARK, resolve_target

# (method, path, status, seconds, remark)
Log = Callable[[str, str, int, float, str], None]
_LONGEST_PATH = 120
# What nginx calls a client that went away before it had its reply.
_GONE = 499


class Access:
    """ASGI middleware, outermost: times, counts and logs."""

    def __init__(self, app: ASGIApp, hub: Hub, log: Log) -> None:
        self._app = app
        self._hub = hub
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        scope = resolve_target(scope)
        state = scope.setdefault("state", {})

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _HEADERS if pair[0] not in known),
                ]
            await send(message)

        try:
            with self._hub.hold():
                await self._app(scope, receive, tell)
        except Exception as error:
            if status:  # too late to say so
                raise
            await make_api_error(error).respond()(scope, receive, tell)
        finally:
            status = status or _GONE
            self._hub.metrics.count_request(_name_endpoint(scope), status)
            seconds = time.monotonic() - began
            self._log(scope["method"], scope["path"], status, seconds, state.get(REMARK, ""))


def choose_log(style: str) -> Log:
    """The log that a setting names: "text", "json" or "off"."""
    return {"text": _log_text, "json": _log_json, "off": _log_nothing}[style]


def _log_text(method: str, path: str, status: int, seconds: float, remark: str) -> None:
    shown = _show(path)
    line = f"{method} {shown} {status} {seconds:.3f}s{' ' if remark else ''}{remark}"
    LINES.write(line)


def _log_json(method: str, path: str, status: int, seconds: float, remark: str) -> None:
    record = {
        "time": time.time(),
        "method": method,
        "path": _show(path),
        "status": status,
        "seconds": round(seconds, 4),
        "remark": remark,
    }
    LINES.write(json.dumps(record))


def _log_nothing(method: str, path: str, status: int, seconds: float, remark: str) -> None:
    pass


def _show(path: str) -> str:
    # A path may hold anything, a terminal's control sequences included.
    return ascii(path[:_LONGEST_PATH])[1:-1].replace(" ", "%20")


def _name_endpoint(scope: Scope) -> str:
    """The route's path with its parameters unfilled, so that clients cannot make up labels."""
    route = scope.get("route")
    return str(getattr(route, "path", "other")) or "page"


_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
