"""Failures -> one line on stderr and an exit code.

    0    done
    1    an error with a known reason, or a verification that did not pass
    2    the command line was wrong
    3    a bug in this package
    130  interrupted
    141  the reader of stdout went away

The environment variable LFM2_DEPLOY_TRACEBACK=1 adds Python's traceback to errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.text import Text

from lfm2_deploy.commands import shells
from lfm2_deploy.commands.console import notes, printable
from lfm2_deploy.commands.help import HelpGroup
from lfm2_deploy.errors import Lfm2DeployError, UsageError

PROGRAM = "lfm2-deploy"
ERROR, USAGE, BUG, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141
_TRACEBACK = "LFM2_DEPLOY_TRACEBACK"

# Options of other programs, or of other commands here, by what they are called where they are not.
_MEANT = {
    **dict.fromkeys(("--max-tokens", "--max-length", "--n-predict"), "--max-new-tokens"),
    "--max-new-tokens": "--max-tokens",
}


class CommandGroup(HelpGroup):
    """The command line, whose failures are reported in the way this module describes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> int:
        """Run a command line.

        Args:
            args: the words after the program's name; those of this process when None.
            prog_name: how usage lines name the program.
            complete_var: not used; the variable's name is `shells.SWITCH`.
            standalone_mode: exit with the code instead of returning it.
            windows_expand_args: not used; a prompt's `*` and `?` are left alone.
            **extra: settings of the context.
        """
        words = list(sys.argv[1:] if args is None else args)
        if shells.is_asked():
            sys.exit(shells.answer(self, prog_name or PROGRAM))

        def work() -> None:
            with self.make_context(prog_name or PROGRAM, words, **extra) as context:
                self.invoke(context)

        code = run_reporting(work)
        if standalone_mode:
            sys.exit(code)
        return code


def run_reporting(work: Callable[[], object]) -> int:
    """Do the work; report what goes wrong, and return the exit code."""
    try:
        work()
        sys.stdout.flush()  # here, where a reader that went away can be handled
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except Exception as error:
        return _report(error)
    return 0


def print_error(message: str) -> None:
    """Write `error: ...` to stderr, in one line."""
    line = printable(" ".join(message.split()))
    notes().print(Text.assemble(("error:", "bold red"), f" {line}"), soft_wrap=True)


def _report(error: Exception) -> int:
    if os.environ.get(_TRACEBACK):
        import traceback

        traceback.print_exception(error)
    # typer may carry its own copy of click, so a usage error is known by what it offers.
    format_usage = getattr(error, "format_message", None)
    if format_usage is not None:
        print_error(_explain_usage(error, format_usage()))
        return USAGE
    if isinstance(error, Lfm2DeployError):
        print_error(str(error))
        return USAGE if isinstance(error, UsageError) else ERROR
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        print_error(f"{error.strerror or error}{place}")
        return ERROR
    if isinstance(error, MemoryError):
        print_error("there is not enough memory; try a smaller model, precision or context")
        return ERROR
    print_error(
        f"{type(error).__name__}: {error} (this is a bug, please report it; "
        f"set {_TRACEBACK}=1 to see more)"
    )
    return BUG


def _explain_usage(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    path = PROGRAM if context is None else context.command_path
    asked = str(getattr(error, "option_name", ""))
    meant = _MEANT.get(asked, "") if hasattr(error, "possibilities") else ""
    params = [] if context is None else context.command.params
    if meant and any(meant in param.opts for param in params):
        message = f"No such option: {asked}; did you mean {meant}"
    # What typer puts in front of a message that is a sentence already.
    message = message.removeprefix("Invalid value: ").replace("Value error, ", "").rstrip(".?")
    return f"{message}; see {path} --help"


def _discard_stdout() -> None:
    # What Python still holds for stdout is written at exit, and would fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
