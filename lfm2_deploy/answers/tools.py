"""Tools as clients send them -> what LFM2's prompts hold, and which of them may be called.

Enters: OpenAI's tool objects, or bare functions, and a `tool_choice`. Leaves: bare functions,
`{"name": ..., "description": ..., "parameters": ...}`: LFM2 was trained on these, and its
templates print what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.errors import RequestError, TemplateError
from lfm2_deploy.words import suggest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChosenTools:
    """What comes of a `tool_choice`.

    Args:
        shown: tools that the prompt tells of; none where none may be called.
        forced: tools of which one must be called; empty where the model is free.
    """

    shown: tuple[Tool, ...]
    forced: tuple[Tool, ...] = ()


def normalize_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Check tools and bring them into LFM2's form.

    Args:
        tools: `{"type": "function", "function": {...}}`, the Responses API's
            `{"type": "function", "name": ...}`, or bare functions.

    Raises:
        TemplateError: one is no function, or not named or described as it must be.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise TemplateError(f"tools is a {type(tools).__name__}, expected a list of functions")
    normalized = [_normalize(f"tool {index}", tool) for index, tool in enumerate(tools)]
    names = [tool["name"] for tool in normalized]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TemplateError(f"two tools are named '{twice}': give each its own name")
    return normalized


def find_strict(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the tools whose arguments must follow their schema (`"strict": true`).

    Args:
        tools: as `normalize_tools` takes them.
    """
    functions = [(tool, tool.get("function", tool)) for tool in tools]
    return frozenset(
        function["name"]
        for tool, function in functions
        if function.get("strict") is True or tool.get("strict") is True
    )


def choose_tools(tools: Sequence[Tool], tool_choice: Any = "auto") -> ChosenTools:
    """Apply a `tool_choice`.

    Args:
        tools: normalized.
        tool_choice: "auto", "none", "required", a function's name, or one of OpenAI's objects
            that name a function or a list of allowed ones. A function that has the name of one
            of those words can be named by an object only.

    Raises:
        RequestError: a call is wanted, and the tool is not there.
    """
    kind, names = _read_choice(tool_choice)
    if kind == "none":
        return ChosenTools(())
    by_name = {tool["name"]: tool for tool in tools}
    for name in names or ():
        if name not in by_name:
            raise RequestError(
                f"tool_choice names '{name}', and there is no such tool{suggest(name, by_name)}"
            )
    allowed = tuple(tools if names is None else (by_name[name] for name in names))
    if kind == "auto":
        return ChosenTools(allowed)
    if not allowed:
        raise RequestError("tool_choice wants a call, and there are no tools: give at least one")
    # The prompt stays that of "auto": what was computed for it can be used again.
    return ChosenTools(tuple(tools), allowed)


def _read_choice(choice: Any) -> tuple[str, Sequence[str] | None]:
    """ "auto", "none" or "required", and the names it is about; None for all."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        return (choice, None) if choice in ("auto", "none", "required") else ("required", [choice])
    if not isinstance(choice, Mapping):
        raise _bad_choice(choice)
    kind = choice.get("type")
    if kind == "function":
        return "required", [_named(choice, choice)]
    if kind == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        listed = inner.get("tools") if isinstance(inner, Mapping) else None
        mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
        if isinstance(listed, Sequence) and mode in ("auto", "required"):
            return mode, [_named(tool, choice) for tool in listed]
    raise _bad_choice(choice)


def _named(tool: Any, choice: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise _bad_choice(choice)
    return name


def _bad_choice(choice: Any) -> RequestError:
    return RequestError(
        f"tool_choice is {str(choice)[:80]!r}, expected 'auto', 'none', 'required' or "
        '{"type": "function", "function": {"name": ...}}'
    )


def _normalize(place: str, tool: Any) -> Tool:
    if not isinstance(tool, Mapping):
        raise TemplateError(f"{place} is a {type(tool).__name__}, expected an object")
    kind = tool.get("type", "function")
    if kind != "function":
        raise TemplateError(f"{place} has the type '{kind}': only functions can be called")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TemplateError(
            f"{place} is named {name!r}, expected 1 to 64 letters, digits, '_' and '-'"
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise TemplateError(f"{place} ('{name}'): the description must be a string")
    described = {} if description is None else {"description": description}
    parameters = _check_parameters(f"{place} ('{name}')", function.get("parameters"))
    return {"name": name, **described, "parameters": parameters}


def _check_parameters(place: str, parameters: Any) -> dict[str, Any]:
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise TemplateError(f'{place}: parameters must be a schema with "type": "object"')
    properties = parameters.get("properties", {})
    if not isinstance(properties, Mapping) or not all(
        isinstance(value, Mapping | bool) for value in properties.values()
    ):
        raise TemplateError(f"{place}: properties must be an object of schemas")
    required = parameters.get("required", [])
    if not isinstance(required, list | tuple) or not all(isinstance(n, str) for n in required):
        raise TemplateError(f"{place}: required must be a list of names")
    return {"type": "object", **parameters}
