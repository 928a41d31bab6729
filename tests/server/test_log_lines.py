"""A log that nobody reads holds nothing up."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.server.log_lines import LINES, LogLines, take_over


@contextmanager
def piped_stderr() -> Iterator[int]:
    """The end to read from of a pipe that is stderr; not a fixture, since pytest sets its own."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stderr, redirect_stderr(stderr):
        try:
            yield read
        finally:
            os.close(read)
            LINES.flush(10)  # it fails now, but does so while this is stderr


def test_lines_that_find_no_reader_are_left_out_and_counted() -> None:
    with piped_stderr() as pipe:
        lines = LogLines(2)
        for number in range(300):
            lines.write(f"{number:03} " + "x" * 10_000)  # far more than pipes hold
        read = b""
        while b"missing" not in read:
            read += os.read(pipe, 65_536)
        assert read.startswith(b"000 ")
        lines.flush(10)
        while not read.endswith(b"later\n"):
            lines.write("later")
            read += os.read(pipe, 65_536)
        assert b"\n299 " not in read


def test_server_answers_though_nobody_reads_its_log(serve: Callable[..., Any]) -> None:
    server = serve(access_log="text")
    with piped_stderr(), server.http as http:
        fill(sys.stderr.fileno())
        for _ in range(3):
            assert http.get("/health").status_code == 200


def test_server_answers_though_its_log_is_closed(serve: Callable[..., Any]) -> None:
    server = serve(access_log="text")
    with piped_stderr() as pipe, server.http as http, Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), pipe)  # in the place of the pipe's end, which is closed so
        for _ in range(3):
            assert http.get("/health").status_code == 200


def fill(pipe: int) -> None:
    """Write as much as nobody needs to read."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)


def test_loggers_write_this_way_where_no_program_arranged_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("lfm2_deploy.tests.log_lines")
    monkeypatch.setattr(logger, "propagate", False)  # pytest listens at the root
    take_over(logger.name)
    take_over(logger.name)
    assert len(logger.handlers) == 1


def test_program_ends_though_nobody_reads_its_log() -> None:
    code = (
        "from lfm2_deploy.server.log_lines import LINES\n"
        "for _ in range(500): LINES.write('x' * 10_000)"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert running.wait(60) == 0
    assert running.stderr is not None
    running.stderr.close()
