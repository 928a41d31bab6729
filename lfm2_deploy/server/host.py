"""Runs an app under uvicorn, and ends it well.

On the first signal new requests are refused and running answers get a grace period; what is left
then is cut, with an end that says so. On the second everything ends at once. Connections that send
no request, and those that read none of their replies, are closed; where there are too many, the one
that was idle longest makes room.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from asyncio import Transport
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.server.errors import LOG
from lfm2_deploy.server.hub import Hub
from lfm2_deploy.server.log_lines import take_over

_KEEP_ALIVE_SECONDS = 30
# From a connection's begin to the end of its first request's headers.
_HEADER_SECONDS = 15.0
_MOST_HEADER_BYTES = 32 * 2**10
_MOST_CONNECTIONS = 256
# In which a client must have read something of what is there for it.
_READ_SECONDS = 60.0
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n"
)
# For answers that were cut to write their last lines.
_LAST_SECONDS = 3.0
_POLL_SECONDS = 0.05


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for clients only so long, and has a bounded number of connections."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        if len(self.connections) > _MOST_CONNECTIONS and not self._make_room():
            transport.write(_FULL)
            self._close()
            return
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif before is not None and before.response_complete and self._header_timer is None:
            # The keep-alive timer ended with the first byte of a further request.
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: more waits to be read than the system takes."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop_watching()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """A reply was written, perhaps not read."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _make_room(self) -> bool:
        """Close the connection that was idle longest, where there is one."""
        others = (
            other
            for other in self.connections
            if isinstance(other, PatientProtocol) and other is not self
        )
        idle = [other for other in others if other._is_idle and not other.transport.is_closing()]
        if idle:
            # What it has not read by now is lost to it.
            min(idle, key=lambda other: other._idle_since).transport.abort()
        return bool(idle)

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(_HEADER_SECONDS, self._close)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close(self) -> None:
        """Close once all is read that was written, or after a while."""
        self.transport.close()
        self._await_reader()

    def _await_reader(self) -> None:
        """See that the client reads: what closes would wait for it without end."""
        self._stop_watching()
        left = self.transport.get_write_buffer_size()
        if left:
            self._read_timer = self.loop.call_later(_READ_SECONDS, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._await_reader()

    def _stop_watching(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class Host(uvicorn.Server):
    """One app on one socket."""

    def __init__(
        self,
        app: FastAPI,
        *,
        grace_seconds: float = 30.0,
        at_signal: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare to run.

        Args:
            app: of `make_app`.
            grace_seconds: for running answers, once the server is to end.
            at_signal: told at the first signal how many requests are not answered yet.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                # Its warnings are of what clients send, which they could fill a disk with.
                log_level="error",
                access_log=False,
                server_header=False,
                # A client's word on who it is, or on which scheme it came by, is not taken.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(_LAST_SECONDS),
                h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            )
        )
        self._hub: Hub = app.state.hub
        self._grace = grace_seconds
        self._at_signal = at_signal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    @property
    def was_forced(self) -> bool:
        """A second signal came."""
        return self.force_exit

    def run_on(
        self, listener: socket.socket, at_start: Callable[[asyncio.AbstractEventLoop], Any]
    ) -> None:
        """Serve until a signal comes, or `stop` is called.

        Args:
            listener: bound; see `listen`.
            at_start: called once requests are taken.
        """

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(at_start, self._loop)
            await self.serve(sockets=[listener])

        take_over(LOG.name, "uvicorn.error")
        asyncio.run(serve())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; ours are not raised again, so that the exit code is 0."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
            self._hub.cancel_all()
        else:
            self.stop()

    def stop(self) -> None:
        """End as at a first signal; from any thread."""
        if self._loop is None:
            self.should_exit = True
            return
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._begin_end)

    def _begin_end(self) -> None:
        self._hub.drain()
        if self._signals:  # not in the handler: it may have come in the midst of a print
            self._at_signal(self._hub.active)
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        if not await self._wait_idle(self._grace):
            self._hub.cancel_all()
            await self._wait_idle(_LAST_SECONDS)
        self.should_exit = True

    async def _wait_idle(self, seconds: float) -> bool:
        """Whether every request was answered in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._hub.active and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        return not self._hub.active


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Args:
        host: an address or name of this computer.
        port: 0 for any that is free.

    Raises:
        Lfm2DeployError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # On Windows it would let two programs share a port.
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Lfm2DeployError(
            f"cannot listen at {host} port {port} ({error.strerror or error}): "
            f"{_advise(host, error)}"
        ) from error
    return listener


def _advise(host: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is none of this computer's addresses; --host 127.0.0.1 is for this computer "
            "alone, 0.0.0.0 for others, too"
        )
    return "choose another --port, or 0 for any that is free"


def find_lan_address() -> str:
    """This computer's address in its network; "" where it is in none. Nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # of no computer: only the way there is chosen
        address = str(probe.getsockname()[0])
        return "" if address.startswith(("127.", "0.")) else address
    return ""


def make_url(host: str, listener: socket.socket) -> str:
    """The address to open in a browser on this computer."""
    port = listener.getsockname()[1]
    if host in ("0.0.0.0", "::", ""):
        return f"http://127.0.0.1:{port}" if host != "::" else f"http://[::1]:{port}"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
