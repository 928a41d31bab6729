"""Calls of tools as LFM2 writes them: the way back of `ToolCallParser`.

Enters: names and arguments. Leaves: `<|tool_call_start|>[f(a="v")]<|tool_call_end|>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lfm2_deploy.answers.marks import CALL_END, CALL_START

_ARGUMENT_NAME = re.compile(r"[\w.$@-]+")
_CONSTANTS = {True: "True", False: "False", None: "None"}


def write_calls(calls: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Write calls, in Python's form.

    Args:
        calls: name and arguments of each; plain JSON values.
    """
    written = (f"{name}({_write_arguments(arguments)})" for name, arguments in calls)
    return f"{CALL_START}[{', '.join(written)}]{CALL_END}"


def _write_arguments(arguments: Mapping[str, Any]) -> str:
    if all(_ARGUMENT_NAME.fullmatch(name) for name in arguments):
        return ", ".join(f"{name}={_write_value(value)}" for name, value in arguments.items())
    return f"**{_write_value(dict(arguments))}"


def _write_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return _CONSTANTS[value]
    # A mark within a value is none: a reader that looks for marks must not find it.
    return json.dumps(value, ensure_ascii=False).replace("<|", "\\u003c|")
