"""Native code's words go to stderr while results are made."""

from __future__ import annotations

import os

import pytest

from runtimes.quiet import stdout_to_stderr


def test_what_native_code_writes_to_stdout_goes_to_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Qualcomm's emulator wrote a line in front of --json's object.
    with stdout_to_stderr():
        os.write(1, b"a library's own words\n")
    print("a result", flush=True)
    written = capfd.readouterr()
    assert written.out == "a result\n"
    assert written.err == "a library's own words\n"
