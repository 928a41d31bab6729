"""A server in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_SECONDS_TO_END = 60


@dataclass
class Served:
    """A server that runs.

    Args:
        url: where.
        process: None for one that was started elsewhere.
        exit_code: once it has ended.
    """

    url: str
    process: subprocess.Popen[str] | None = None
    exit_code: int | None = None

    def end(self) -> None:
        """Ask it to end, as a desktop or a service manager would, and wait."""
        if self.process is None or self.exit_code is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.exit_code = self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.exit_code = self.process.wait()


@contextmanager
def start(bundle: str, *options: str) -> Iterator[Served]:
    """Run `lfm2-deploy serve` on a free port; what it says goes to stderr."""
    command: Sequence[str] = (
        sys.executable,
        *("-m", "lfm2_deploy", "serve", bundle, "--port", "0", "--log", "off", *options),
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()  # "ready: chat at URL/, API at URL/v1 (model NAME)"
    if "API at " not in line:
        process.kill()
        raise SystemExit(f"the server did not start: {line.strip() or process.wait()}")
    served = Served(line.partition("API at ")[2].partition("/v1")[0], process)
    try:
        yield served
    finally:
        served.end()
        process.stdout.close()
