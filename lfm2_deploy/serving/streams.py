"""Events of one request, for a thread or an event loop that waits for them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator

from lfm2_deploy.answers.events import Answer, Event, Finished
from lfm2_deploy.serving.request import Request


class _Requests:
    """The choices of one request, which end together."""

    def __init__(self) -> None:
        self.requests: tuple[Request, ...] = ()
        self._wake: Callable[[], None] = lambda: None
        self._cancelled = self._has_failed = False
        self._answers: list[Answer] = []

    @property
    def _has_ended(self) -> bool:
        return self._has_failed or len(self._answers) >= len(self.requests)

    def _note(self, event: Event | Exception) -> Event:
        """Keep answers; raise what is no event, and end."""
        if isinstance(event, Exception):
            self._has_failed = True
            raise event
        if isinstance(event, Finished):
            self._answers.append(event.answer)
        return event

    def _sorted_answers(self) -> list[Answer]:
        return sorted(self._answers, key=lambda answer: answer.choice)

    def begin(self, requests: tuple[Request, ...], wake: Callable[[], None]) -> None:
        """Say which requests these are; perhaps cancelled before there were any.

        Args:
            requests: one for each choice.
            wake: has the thread that runs them look at them again.
        """
        self.requests, self._wake = requests, wake
        if self._cancelled:
            self.cancel()

    def cancel(self) -> None:
        """End every choice before its next token; their `Finished` events still come."""
        self._cancelled = True
        for request in self.requests:
            request.cancelled.set()
        self._wake()


class Stream(_Requests):
    """The events of one request, in order; iterate it once, from any thread.

    Leaving the loop, or the `with` block, cancels what still runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

    def deliver(self, event: Event | Exception) -> None:
        """Take an event, from the thread that runs the model."""
        self._events.put(event)

    def __iter__(self) -> Iterator[Event]:
        try:
            while not self._has_ended:
                yield self._note(self._events.get())
        finally:
            self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def answers(self) -> list[Answer]:
        """Wait for the end; every choice's answer, in order."""
        for _ in self:
            pass
        return self._sorted_answers()


class AsyncStream(_Requests):
    """As `Stream`, for an event loop: `async for`, `async with`."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def deliver(self, event: Event | Exception) -> None:
        """Take an event, from the thread that runs the model."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop was closed: nobody listens any more
            for request in self.requests:
                request.cancelled.set()  # without `wake`: this is the thread that looks at them

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            while not self._has_ended:
                yield self._note(await self._events.get())
        finally:
            self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def answers(self) -> list[Answer]:
        """Wait for the end; every choice's answer, in order."""
        async for _ in self:
            pass
        return self._sorted_answers()
