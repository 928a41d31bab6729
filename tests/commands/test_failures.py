"""Failures -> exit codes and one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from lfm2_deploy.commands.failures import print_error, run_reporting
from lfm2_deploy.errors import BundleError


def raiser(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BundleError("x is [bold]not[/] a bundle"), 1, "error: x is [bold]not[/] a bundle\n"),
        (BundleError("two\nlines"), 1, "error: two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: Permission denied: /x\n"),
        (typer.BadParameter("give one"), 2, "error: give one; see lfm2-deploy --help\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(7), 7, ""),
    ],
)
def test_known_failure_prints_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_reporting(raiser(error)) == code
    assert capsys.readouterr() == ("", line)


def test_out_of_memory_advises(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting(raiser(MemoryError())) == 1
    assert "smaller model" in capsys.readouterr().err


def test_unknown_failure_asks_for_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LFM2_DEPLOY_TRACEBACK", raising=False)
    assert run_reporting(raiser(ZeroDivisionError("by [zero]"))) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ZeroDivisionError: by [zero] (")
    assert "report" in error
    assert "LFM2_DEPLOY_TRACEBACK=1" in error
    assert error.count("\n") == 1


def test_traceback_is_shown_where_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_TRACEBACK", "1")
    assert run_reporting(raiser(BundleError("gone"))) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: gone\n")


def test_success_is_zero() -> None:
    assert run_reporting(lambda: None) == 0


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("file \x1b[2Jname")
    assert capsys.readouterr().err == "error: file \N{REPLACEMENT CHARACTER}[2Jname\n"
