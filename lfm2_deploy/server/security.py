"""Who may come in: names of the host, origins of web pages, keys.

Three doors, in this order, before anything of a request is read. The host's name is checked
because a web page can have its own name point at this computer (DNS rebinding), the origin because
a browser sends requests of any page; the key last.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.server.errors import ApiError
from lfm2_deploy.server.settings import Settings

_SAFE = {"GET", "HEAD", "OPTIONS"}
# Not the page, which asks for a key itself, nor health, which is for whoever starts the server.
_LOCKED_PATHS = ("/v1/", "/metrics")
# Under which entry of a request's state it stands whose key it had, as a digest.
OWNER = "owner"
ANY = "*"
# Under which key of a request's state a remark for the log is, such as how many tokens it took.
REMARK = "remark"
# default-src covers scripts, styles, fonts, images and connections.
_PAGE_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": _PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/@\[\]]+))(?::[0-9]{0,5})?")
_WHOLE_URL = re.compile(r"https?://(?P<host>[^/?#]*)", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://[^\s/?#@]+")
# Browsers leave them out.
_USUAL_PORTS = {"http": ":80", "https": ":443"}


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this computer only."""
    if host.lower() == "localhost":
        return True
    address = _read_address(host)
    return address is not None and address.is_loopback


class Doors:
    """ASGI middleware that lets in who may come in."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._origins = {read_origin(origin) for origin in settings.origins}
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            scope.setdefault("state", {})[OWNER] = self._check_key(scope, headers)
        except ApiError as error:
            # What `access` writes behind the request's line.
            scope.setdefault("state", {})[REMARK] = error.message
            await error.respond()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        settings, given = self._settings, headers.get("host", "")
        name = split_host(given)
        if ANY in settings.hosts or name in {host.lower() for host in settings.hosts}:
            return
        if is_loopback(name) or name == settings.host.lower():
            return
        # A rebound name is a name: where other computers may come, an address is good.
        if not is_loopback(settings.host) and _read_address(name) is not None:
            return
        raise ApiError(
            403,
            f"the host {given[:80]!a} is none of this server's names: start it with "
            "--allow-host NAME",
            code="host_not_allowed",
        )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if origin is None or (scope["method"] in _SAFE and not asks):
            return
        if ANY in self._origins or origin.lower() in self._origins:
            return
        if origin.lower() == f"{scope['scheme']}://{headers.get('host', '')}".lower():
            return
        raise ApiError(
            403,
            f"web pages of {origin[:80]!a} may not use this server: start it with "
            "--allow-origin ORIGIN",
            code="origin_not_allowed",
        )

    def _check_key(self, scope: Scope, headers: Headers) -> bytes:
        """Whose request it is; "" where everybody may come in."""
        # Mounted in another app, a path begins with where.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self._keys or not path.startswith(_LOCKED_PATHS):
            return b""
        if scope["method"] == "OPTIONS":  # browsers ask without a key whether they may ask
            return b""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "bearer" else "")
        # Every key is compared, so that time tells nothing.
        if not sum(hmac.compare_digest(given, known) for known in self._keys):
            wanted = "send the header Authorization: Bearer KEY"
            raise ApiError(
                401,
                f"the key is none of this server's: {wanted} with one that it was started with"
                if scheme.lower() == "bearer" and key.strip()
                else f"this server needs a key: {wanted}",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return given


class Preflight(CORSMiddleware):
    """Answers what browsers ask for web pages that may call; the doors refuse others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            origin = Headers(scope=scope).get("origin")
            if origin is not None and not self.is_allowed_origin(origin):
                await self.app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def split_host(header: str) -> str:
    """The name in a `Host` header, without its port and brackets, in lower case; "" of no such."""
    found = _HOST.fullmatch(header)
    return "" if found is None else (found["address"] or found["name"]).lower().rstrip(".")


def resolve_target(scope: Scope) -> Scope:
    """A request whose target is a whole URL, as one with a path: such are to be taken, too.

    What the URL says of the host holds, whatever the header says (RFC 9112, 3.2.2).
    """
    found = _WHOLE_URL.match(scope["path"])
    if found is None:
        return scope
    host = (b"host", found["host"].encode())
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = scope["path"][found.end() :] or "/"
    raw_path = scope["raw_path"][found.end() :] or b"/"
    return {**scope, "path": path, "raw_path": raw_path, "headers": [host, *others]}


def read_origin(given: str) -> str:
    """An origin as browsers send it.

    Args:
        given: such as "http://localhost:3000/".

    Raises:
        Lfm2DeployError: it is none.
    """
    origin = given.strip().lower().removesuffix("/")
    if origin in (ANY, "null"):
        return origin
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise Lfm2DeployError(
            f"{given!r} is no origin of a web page: give its scheme, host and port, such as "
            "http://localhost:3000, without a path"
        )
    return origin.removesuffix(_USUAL_PORTS.get(found["scheme"], "/"))


def _read_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
