"""Lines for stderr, written by a thread of their own: a pipe that nobody reads holds up no answer.

Enters: lines, from any thread. Leaves: bytes at stderr, or nothing where it is closed. Lines that
find no room are left out, and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from contextlib import suppress

# About what a pipe of a system holds, once more.
_MOST_LINES = 1_000
_LAST_SECONDS = 0.5


class LogLines:
    """What waits to be written."""

    def __init__(self, most: int = _MOST_LINES) -> None:
        self._waiting: queue.Queue[str] = queue.Queue(most)
        self._lock = threading.Lock()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Have a line written soon; never waits."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lfm2-log", daemon=True)
                self._thread.start()
                atexit.register(self.flush, _LAST_SECONDS)
            try:
                self._waiting.put_nowait(line)
            except queue.Full:
                self._dropped += 1

    def flush(self, seconds: float) -> None:
        """Wait until all is written, or so long."""
        done = self._waiting.all_tasks_done
        with done:
            done.wait_for(lambda: not self._waiting.unfinished_tasks, seconds)

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            _write(f"{line}\n")
            with self._lock:
                dropped, self._dropped = self._dropped, 0
            if dropped:
                _write(f"(here {dropped:,} lines of the log are missing: nobody read them)\n")
            self._waiting.task_done()


class LogHandler(logging.Handler):
    """Has records of `logging` written in the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        LINES.write(self.format(record))


def take_over(*names: str) -> None:
    """Write what these loggers say, where the program around has not arranged for it."""
    for name in names:
        logger = logging.getLogger(name)
        if not logger.hasHandlers():
            logger.addHandler(LogHandler())


def _write(text: str) -> None:
    if sys.stderr is None:  # a program without a console
        return
    with suppress(OSError, ValueError):
        # Not through Python's own buffer: its lock, held for ever, would break the program's end.
        left = text.encode("utf-8", "backslashreplace")
        while left:
            left = left[os.write(sys.stderr.fileno(), left) :]


LINES = LogLines()
