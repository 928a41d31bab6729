"""Calling a function in a process of its own: a driver may crash it, or never answer.

What enters and leaves are values that JSON knows. This module knows no backend: functions
are given by their place, as the registry has them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

# The child finds what this process finds, and nothing of the folder it is started in. What
# drivers print to stdout goes to stderr, so that the answer stands alone.
_BOOT = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answer = os.dup(1)
os.dup2(2, 1)
from lfm2_deploy.child import answer_call
answer_call(answer, *sys.argv[2:])
"""
# A driver may hang where no signal reaches; the child is then left to the system.
_SECONDS_TO_DIE = 2.0
_KEPT_LINES = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call.

    Args:
        value: what the function returned; None where it did not.
        failure: why it did not return, in one line; None where it did.
        said: the last lines that the child wrote to stderr.
    """

    value: Any
    failure: str | None
    said: tuple[str, ...] = ()


def call_in_child(module: str, attribute: str, *arguments: Any, seconds: float) -> Answer:
    """Call a function in a fresh Python process.

    Args:
        module: the module it lives in.
        attribute: its name there.
        arguments: values that JSON knows.
        seconds: how long to wait before the child is ended.

    Returns:
        The value, or why there is none: an exception, a crash, or no answer in time.
    """
    command = [
        *(sys.executable, "-c", _BOOT, json.dumps([path for path in sys.path if path])),
        *(module, attribute, json.dumps(arguments)),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as child:
        try:
            answer, errors = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return _give_up(child, seconds)
    said = tuple(errors.decode(errors="replace").splitlines()[-_KEPT_LINES:])
    try:
        record = json.loads(answer)
    except ValueError:
        return Answer(None, _explain_death(child.returncode, said), said)
    return Answer(record["value"], record["failure"], said)


def _give_up(child: subprocess.Popen[bytes], seconds: float) -> Answer:
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=_SECONDS_TO_DIE)
    # Popen's __exit__ would wait for a child that cannot die.
    if child.returncode is None:
        child.returncode = -signal.SIGTERM
    return Answer(None, f"it did not answer within {seconds:g} s")


def _explain_death(code: int, said: tuple[str, ...]) -> str:
    last = next((line for line in reversed(said) if line.strip()), "it said nothing")
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the process crashed ({signal.Signals(-code).name}): {last}"
    return f"the process ended with code {code:#x}: {last}"


def answer_call(place: str | int, module: str, attribute: str, arguments: str) -> None:
    """In the child: call, write the answer to the file descriptor, and end the process."""
    value, failure = None, None
    try:
        function: Any = importlib.import_module(module)
        for name in attribute.split("."):
            function = getattr(function, name)
        value = function(*json.loads(arguments))
        record = json.dumps({"value": value, "failure": None})
    except Exception as error:
        failure = " ".join(str(error).split()) or type(error).__name__
        record = json.dumps({"value": None, "failure": failure})
    with open(int(place), "w", encoding="utf-8") as stream:
        stream.write(record)
    sys.stderr.flush()
    # Drivers that crash while they are unloaded have done their work by now.
    os._exit(0)
