"""Tools are checked, brought into LFM2's form and chosen from."""

from __future__ import annotations

from typing import Any

import pytest

from lfm2_deploy.answers.tools import ChosenTools, choose_tools, find_strict, normalize_tools
from lfm2_deploy.errors import RequestError, TemplateError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [WEATHER, CLOCK]


@pytest.mark.parametrize(
    "tool",
    [
        WEATHER,
        {"type": "function", "function": {**WEATHER, "strict": True}},
        {"type": "function", "strict": False, **WEATHER},
        {"parameters": SCHEMA, "name": "weather", "description": "Of a city."},
    ],
)
def test_every_form_becomes_a_bare_function(tool: Any) -> None:
    (normalized,) = normalize_tools([tool])
    assert normalized == WEATHER
    # A prompt prints them in this order.
    assert [*normalized] == ["name", "description", "parameters"]


@pytest.mark.parametrize("parameters", [None, {}, {"properties": {}}])
def test_tool_without_parameters_takes_an_empty_object(parameters: Any) -> None:
    assert normalize_tools([{"name": "clock", "parameters": parameters}]) == [CLOCK]


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ("weather", "tool 1 is a str"),
        ({}, "tool 1 is named None, expected 1 to 64 letters"),
        ({"name": ""}, "named ''"),
        ({"name": "a b"}, "named 'a b'"),
        ({"name": "a\n"}, "named 'a"),
        ({"name": "ä"}, "named 'ä'"),
        ({"name": "a" * 65}, "expected 1 to 64"),
        ({"type": "function", "function": "weather"}, "named None"),
        ({"type": "web_search"}, "type 'web_search': only functions"),
        ({"name": "a", "description": 3}, r"tool 1 \('a'\): the description"),
        ({"name": "a", "parameters": "x"}, r"tool 1 \('a'\): parameters must be"),
        ({"name": "a", "parameters": {"type": "string"}}, "parameters must be"),
        ({"name": "a", "parameters": {"properties": ["x"]}}, "properties must be"),
        ({"name": "a", "parameters": {"properties": {"x": 3}}}, "properties must be"),
        ({"name": "a", "parameters": {"required": "x"}}, "required must be"),
        ({"name": "a", "parameters": {"required": [3]}}, "required must be"),
        (CLOCK, "two tools are named 'clock'"),
    ],
)
def test_tool_of_another_shape_is_refused(tool: Any, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        normalize_tools([CLOCK, tool])


@pytest.mark.parametrize("tools", ["weather", WEATHER, None])
def test_tools_must_be_a_list(tools: Any) -> None:
    with pytest.raises(TemplateError, match="expected a list"):
        normalize_tools(tools)


def test_strict_tools_are_found_in_every_form() -> None:
    tools = [
        {"type": "function", "function": {**WEATHER, "strict": True}},
        {"type": "function", "name": "date", "strict": True},
        CLOCK,
    ]
    assert find_strict(tools) == {"weather", "date"}


@pytest.mark.parametrize(
    ("choice", "shown", "forced"),
    [
        (None, TOOLS, []),
        ("auto", TOOLS, []),
        ("none", [], []),
        ("required", TOOLS, TOOLS),
        ("clock", TOOLS, [CLOCK]),
        ({"type": "function", "function": {"name": "clock"}}, TOOLS, [CLOCK]),
        ({"type": "function", "name": "clock"}, TOOLS, [CLOCK]),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "clock"}],
            },
            TOOLS,
            [CLOCK],
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "clock"}}],
                },
            },
            [CLOCK],
            [],
        ),
    ],
)
def test_choice_says_what_is_shown_and_what_must_be_called(
    choice: Any, shown: list[Any], forced: list[Any]
) -> None:
    assert choose_tools(TOOLS, choice) == ChosenTools(tuple(shown), tuple(forced))


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("clocks", "names 'clocks', and there is no such tool; did you mean clock"),
        ({"type": "function", "function": {"name": "x"}}, "names 'x'"),
        ({"type": "function"}, "tool_choice is"),
        ({"type": "web_search"}, "tool_choice is"),
        ({"type": "allowed_tools", "mode": "often", "tools": []}, "tool_choice is"),
        (3, "tool_choice is '3', expected 'auto'"),
    ],
)
def test_choice_that_cannot_be_followed_is_refused(choice: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        choose_tools(TOOLS, choice)


def test_call_without_tools_cannot_be_required() -> None:
    assert choose_tools([], "auto") == ChosenTools(())
    with pytest.raises(RequestError, match="there are no tools"):
        choose_tools([], "required")
