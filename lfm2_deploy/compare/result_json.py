"""A comparison's report -> a JSON object, and back."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from lfm2_deploy.compare.result import Report

# Raised where a reader of an older one would be misled.
SCHEMA = 1


def describe(report: Report) -> dict[str, Any]:
    """A report as a JSON object; nan and infinity become null."""
    return {"schema": SCHEMA, **_to_json(report)}


def read_report(record: Mapping[str, Any]) -> Report:
    """The report that `describe` made a JSON object of; null becomes nan where a float is due.

    Raises:
        ValueError: it is of another schema, or no such object.
    """
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema is {record.get('schema')!r}, expected {SCHEMA}")
    body = {name: value for name, value in record.items() if name != "schema"}
    report: Report = _from_json(Report, body)
    return report


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _from_json(next(k for k in inner if k is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"found {type(value).__name__}, expected a list")
        return tuple(_from_json(inner[0], item) for item in value)
    if is_dataclass(kind):
        return _read_dataclass(kind, value)
    if kind is float:
        return math.nan if value is None else float(value)
    return value


def _read_dataclass(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"found {type(value).__name__}, expected a {kind.__name__}")
    hints = _hints(kind)
    wrong = sorted(value.keys() ^ hints.keys())
    if wrong:
        raise ValueError(f"{kind.__name__} has {', '.join(wrong)} too much or too little")
    return kind(**{name: _from_json(hint, value[name]) for name, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
