"""Which weight jobs of an unfinished export are done, so that it can go on.

Enters: numbers of finished jobs, each with a note. Leaves: after an interruption, the same. A
line is written only once the bytes it speaks of are on the disk, so what it says holds after
Ctrl-C, a kill and a power cut. Knows nothing of what the jobs are, nor of what notes mean.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

# Bytes are forced to the disk this often; what was done since then is done again.
_SECONDS = 5.0


class Journal:
    """The finished jobs of one export, appended to a file.

    Args:
        file: where it is kept.
        fingerprint: of all that determines the export's bytes.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        self._file, self._fingerprint = file, fingerprint
        self._pending: list[tuple[int, Any]] = []
        self._synced = time.monotonic()
        self._stream: IO[str] | None = None

    def read(self) -> dict[int, Any] | None:
        """Number -> note of finished jobs; None where the journal is of another export, or none.

        An export that was stopped before its first line leaves an empty file, which is none.
        """
        try:
            lines = self._file.read_text(encoding="ascii", errors="replace").split("\n")
            if json.loads(lines[0]) != {"fingerprint": self._fingerprint}:
                return None
        except (OSError, ValueError):
            return None
        # The last piece ends without a newline: empty, or a line that was cut short.
        return {job: note for line in lines[1:-1] for job, note in _parse_line(line)}

    def begin(self, goes_on: bool) -> None:
        """Start writing: after what is there, or anew."""
        self._stream = self._file.open("a" if goes_on else "w", encoding="ascii", newline="\n")
        if goes_on:
            # The last line may have been cut short; what follows must not become part of it.
            self._stream.write("\n")
        else:
            self._write({"fingerprint": self._fingerprint})
        self._flush()

    def add(self, job: int, note: Any, sync: Callable[[], None]) -> None:
        """Write down a finished job, now or with some later ones.

        Args:
            job: its number.
            note: what is to be known of it after an interruption, as JSON holds it.
            sync: forces everything written so far to the disk.
        """
        self._pending.append((job, note))
        if time.monotonic() - self._synced >= _SECONDS:
            self.sync(sync)

    def sync(self, sync: Callable[[], None]) -> None:
        """Write down every finished job now."""
        sync()
        self._flush()
        self._synced = time.monotonic()

    def _flush(self) -> None:
        if self._pending:
            self._write(self._pending)
            self._pending = []
        assert self._stream is not None
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _write(self, line: object) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(line) + "\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def _parse_line(line: str) -> list[tuple[int, Any]]:
    try:
        return [(int(job), note) for job, note in json.loads(line)]
    except (TypeError, ValueError):
        return []
