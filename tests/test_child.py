"""Calls in a process of their own: whatever happens there, the caller goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lfm2_deploy.child import call_in_child

SECONDS = 20.0


def test_value_comes_back_from_another_process() -> None:
    answer = call_in_child("os", "getpid", seconds=SECONDS)
    assert answer.failure is None
    assert answer.value != os.getpid()


def test_exception_is_told_in_one_line() -> None:
    answer = call_in_child("json", "loads", "{\n", seconds=SECONDS)
    assert answer.value is None
    assert answer.failure is not None
    assert "\n" not in answer.failure
    assert "Expecting property name" in answer.failure


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to crash by")
def test_crash_is_told_with_its_signal() -> None:
    assert call_in_child("os", "abort", seconds=SECONDS).failure == (
        "the process crashed (SIGABRT): it said nothing"
    )


def test_child_that_never_answers_is_ended() -> None:
    started = time.monotonic()
    answer = call_in_child("time", "sleep", 60, seconds=1.0)
    assert answer.failure == "it did not answer within 1 s"
    assert time.monotonic() - started < 30  # generous: machines may be busy


def test_what_drivers_print_does_not_disturb_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import os\ndef work():\n    os.system('echo noise')\n    print('more')\n    return [1]\n"
    )
    (tmp_path / "noisy_driver.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    answer = call_in_child("noisy_driver", "work", seconds=SECONDS)
    assert answer.value == [1]
    assert "noise" in answer.said


def test_folder_it_is_started_in_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies_about.py").write_text("def work():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    assert call_in_child("lies_about", "work", seconds=SECONDS).failure == (
        "No module named 'lies_about'"
    )
