"""Calls of tools are taken out of a text as they come, whatever form they have."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from lfm2_deploy.answers.events import (
    Part,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
)
from lfm2_deploy.answers.tool_calls import ToolCallParser, make_call_id

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"},
                    "n": {"type": "integer"},
                    "x": {"type": ["object", "null"]},
                },
            },
        },
    },
    {"name": "g"},
]


def number_ids() -> Callable[[], str]:
    numbers = count()
    return lambda: f"call_{next(numbers)}"


def parse(text: str, tools: Any = TOOLS, size: int | None = None) -> ToolCallParser:
    return parse_with_text(text, tools, size)[0]


def parse_with_text(
    text: str, tools: Any = TOOLS, size: int | None = None
) -> tuple[ToolCallParser, str]:
    """Parse a text in pieces of a size; joined, the parts are the parser's calls and the text."""
    parser = ToolCallParser(tools, make_id=number_ids())
    size = size or max(1, len(text))
    parts: list[Part] = []
    for start in range(0, len(text), size):
        parts += parser.push(text[start : start + size])
    parts += parser.flush()
    calls: dict[int, tuple[str, str, str]] = {}
    for part in parts:
        if isinstance(part, ToolCallStarted):
            assert part.index == len(calls)
            calls[part.index] = (part.id, part.name, "")
        elif isinstance(part, ToolCallArguments):
            call_id, name, arguments = calls[part.index]
            calls[part.index] = (call_id, name, arguments + part.text)
    assert [(call.id, call.name, call.arguments) for call in parser.calls] == [*calls.values()]
    return parser, "".join(part.text for part in parts if isinstance(part, TextDelta))


def arguments_of(call: str) -> Any:
    """Arguments of the one call in a block; no text is left, cut or whole."""
    results = []
    for size in (None, 1, 3):
        parser, text = parse_with_text(f"{START}[{call}]{END}", size=size)
        assert text == ""
        assert not parser.broken
        assert len(parser.calls) == 1
        results.append(parser.calls[0].arguments)
    assert len(set(results)) == 1
    return json.loads(results[0])


def test_calls_in_pythons_form_are_named_and_written_as_json() -> None:
    parser, text = parse_with_text(
        f'Sure. {START}[f(a="v", n=3, deep={{"x":[1, True, None]}}), g()]{END}'
    )
    assert text == "Sure. "
    assert [(call.name, call.arguments) for call in parser.calls] == [
        ("f", '{"a": "v", "n": 3, "deep": {"x": [1, true, null]}}'),
        ("g", "{}"),
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("-74.0046539", -74.0046539),
        ("+7", 7),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("07", 7),
        ("000", 0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-0b11", -3),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("2024-05-01", "2024-05-01"),
        ("celsius", "celsius"),
        ("'single'", "single"),
        ('""', ""),
        ("''", ""),
        ("[]", []),
        ("{}", {}),
        ("()", []),
        ("(800, 600,)", [800, 600]),
        ("{'a', 'b'}", ["a", "b"]),
        ("{1: 'a', None: 2, k: 3}", {"1": "a", "null": 2, "k": 3}),
        ("[ [1] , {'a' : [ { } ]} , ]", [[1], {"a": [{}]}]),
        ("r'\\d\\n'", "\\d\\n"),
        ("f'plain'", "plain"),
        ("'''it's \"x\"'''", 'it\'s "x"'),
        ('"""two\nlines"""', "two\nlines"),
    ],
)
def test_values_in_pythons_and_jsons_spelling_mean_the_same(written: str, meant: Any) -> None:
    assert arguments_of(f"g(v={written}, w=1)") == {"v": meant, "w": 1}
    assert arguments_of(f"g(w=1, v={written} )") == {"v": meant, "w": 1}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\nb\tc\\d\"e\'f", "a\nb\tc\\d\"e'f"),
        (r"\x41\101\0\u00e9\U0001F642", "AA\0é🙂"),
        (r"\ud83d\ude42", "🙂"),
        (r"\d+\.\w \x4 \u12 \UFFFFFFFF", "\\d+\\.\\w \\x4 \\u12 \\UFFFFFFFF"),
        ("a\\\nb", "ab"),
        ("raw\nline\tand\x00", "raw\nline\tand\x00"),
        ("漢字 🙂", "漢字 🙂"),
        ('grep -F "]" log)', 'grep -F "]" log)'),
        ("sed -n '360,450p' f.py", "sed -n '360,450p' f.py"),
        ("print('a', 'b')", "print('a', 'b')"),
        ("C:\\", "C:\\"),
    ],
)
def test_strings_hold_what_the_model_meant(written: str, meant: str) -> None:
    assert arguments_of(f"g(v='{written}')") == {"v": meant}


def test_half_of_a_surrogate_pair_stays_valid_json() -> None:
    arguments = parse(rf'{START}[g(v="\ud83d")]{END}').calls[0].arguments
    assert arguments == r'{"v": "\ud83d"}'


def test_doubtful_quote_that_closes_nothing_later_was_the_end() -> None:
    parser, text = parse_with_text(f'{START}[g(v="x" w=1)]{END}')
    assert parser.calls[0].arguments == '{"v": "x"}'
    assert text == "w=1)]"
    assert parser.broken == {0}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("f('Paris', 3)", {"a": "Paris", "n": 3}),
        ("f(3)", {"a": "3"}),
        ("f('p', n=1)", {"a": "p", "n": 1}),
        ('f({"a": "v", "n": 1})', {"a": "v", "n": 1}),
        ("f(**{'a': 'v'}, n=2)", {"a": "v", "n": 2}),
        ("f('p', 1, {}, 'more')", {"a": "p", "n": 1, "x": {}, "3": "more"}),
        ("g({'k': 1})", {"0": {"k": 1}}),
    ],
)
def test_arguments_without_names_are_named_by_the_schema(written: str, meant: Any) -> None:
    assert arguments_of(written) == meant


def test_values_follow_the_schema_only_where_it_leaves_no_doubt() -> None:
    assert arguments_of('f(a=007, n="3")') == {"a": "007", "n": "3"}
    assert arguments_of("f(a=True, x=None)") == {"a": True, "x": None}


@pytest.mark.parametrize("name", ["from", "class", "first-name", "$filter", "größe", "3d"])
def test_any_word_names_an_argument(name: str) -> None:
    assert arguments_of(f"g({name}=1)") == {name: 1}


def test_last_of_two_arguments_with_one_name_wins() -> None:
    assert arguments_of("g(a=1, b=2, a=3)") == {"a": 3, "b": 2}


@pytest.mark.parametrize("name", ["Calendar.create_event", "get-weather", "_x1"])
def test_names_of_functions_may_have_dots_and_dashes(name: str) -> None:
    assert parse(f"{START}[{name}(a=1)]{END}").calls[0].name == name


@pytest.mark.parametrize(
    "block",
    [
        'f(a="v"), g()',
        ' [ f( a = "v" ) , g( ) ] ',
        '[f(a="v",), g(),]',
        '[f(a="v")]\n[g()]',
        '[f(a="v"), g()',
        '[f(a="v"); g()]',
        '[f(a="v"), g(',
        '[{"name": "f", "arguments": {"a": "v"}}, {"name": "g", "arguments": {}}]',
        '{"name": "f", "parameters": {"a": "v"}}\n{"name": "g"}',
        '[{"arguments": {"a": "v"}, "name": "f"}, g()]',
        '[{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": \\"v\\"}"}}, g()]',
        '[{"function": "f", "arguments": {"a": "v"}, "id": "7"}, {"name": "g", "arguments": null}]',
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_forms_of_a_block_mean_the_same(block: str, size: int | None) -> None:
    parser, text = parse_with_text(START + block + END, size=size)
    assert [(call.name, json.loads(call.arguments)) for call in parser.calls] == [
        ("f", {"a": "v"}),
        ("g", {}),
    ]
    assert text == ""
    assert not parser.broken


@pytest.mark.parametrize(
    "block",
    [
        "",
        "[]",
        "hello there",
        "[f]",
        "[f, g]",
        '[{"name": 3}]',
        '[{"nome": "f", "arguments": {}}]',
        '[{"name": "f g"}]',
        "[f{a=1}]",
        "[(a=1)]",
        '["f"]',
        "[" * 100 + "]" * 100,
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_block_without_a_call_comes_back_as_text(block: str, size: int | None) -> None:
    parser, text = parse_with_text(f"Hi {START}{block}{END} there", size=size)
    assert parser.calls == ()
    assert text == f"Hi {block} there"


@pytest.mark.parametrize(
    ("block", "arguments", "rest"),
    [
        ("[f(a=g(1))]", {}, "a=g(1))]"),
        ("[f(n=1 2)]", {}, "n=1 2)]"),
        ('[f(a="v", n=])]', {"a": "v"}, ", n=])]"),
        ('[f(a="v", *b)]', {"a": "v"}, ", *b)]"),
        ("[f(n=1, a=[1, }])]", {"n": 1, "a": [1]}, ", }])]"),
        ('[f(a={"k": "v", "l"})]', {"a": {"k": "v"}}, ', "l"})]'),
        ('[{"name": "f", "arguments": {"a": 1, b}}]', {"a": 1}, ", b}}]"),
        ('[{"name": "f", "arguments": 3}]', {}, ', "arguments": 3}]'),
        ('[{"name": "f", "arguments": "{"}]', {}, ', "arguments": "{"}]'),
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_malformed_call_ends_as_valid_json_and_its_rest_is_text(
    block: str, arguments: Any, rest: str, size: int | None
) -> None:
    parser, text = parse_with_text(START + block + END, size=size)
    assert [json.loads(call.arguments) for call in parser.calls] == [arguments]
    assert text == rest
    assert parser.broken == {0}


def test_deep_values_are_malformed() -> None:
    deep = "[" * 60 + "]" * 60
    assert arguments_of(f"g(v={deep})") == {"v": json.loads(deep)}
    for opener in ("[", '{"a": ', "("):
        parser = parse(f"{START}[g(v={opener * 100_000})]{END}")
        json.loads(parser.calls[0].arguments)
        assert parser.broken == {0}


def test_endless_names_and_words_are_malformed() -> None:
    for block in ("f" * 5000 + "()", f"g({'k' * 5000}=1)", f"g(v={'1' * 5000})"):
        _, text = parse_with_text(f"{START}[{block}]{END}", size=7)
        assert len(text) > 4990


def test_block_beyond_all_contexts_is_cut() -> None:
    parser, text = parse_with_text(f'{START}[g(v="{"x" * 1_100_000}")]{END}', size=100_000)
    arguments = json.loads(parser.calls[0].arguments)
    assert 900_000 < len(arguments["v"]) < 1_000_000
    assert len(arguments["v"]) + len(text) == 1_100_000 + len('")]')
    assert parser.broken == {0}


@pytest.mark.parametrize(
    "body",
    [
        'f(a="{}"'.format("x" * 40_000),
        'f(a="{}"'.format('"' * 40_000),
        'f(a="{}"'.format('\\"' * 20_000),
        'f(a="{}"'.format('" ' * 20_000),
        'f(a="x"{}y'.format(" " * 40_000),
        "f(a={}".format('["",' * 10_000),
        "[" * 40_000,
        '{"a' * 10_000,
    ],
)
def test_time_grows_with_the_length_alone(body: str) -> None:
    # Character by character, where a parser that looks back at all of it would need minutes.
    started = time.perf_counter()
    parse_with_text(f"{START}{body}{END}", size=1)
    # 0.4 s where this was written; 20 times that for slow machines.
    assert time.perf_counter() - started < 8


def test_name_and_arguments_come_as_early_as_they_are_certain() -> None:
    parser = ToolCallParser(TOOLS, make_id=number_ids())
    assert parser.push(f"{START}[f") == []
    assert parser.push("(") == [ToolCallStarted(0, "call_0", "f"), ToolCallArguments(0, "{")]
    assert parser.push("a=") == []
    assert parser.push('"long') == [ToolCallArguments(0, '"a": "long')]
    assert parser.push(" text") == [ToolCallArguments(0, " text")]
    # A quote may stand within the string.
    assert parser.push('"') == []
    assert parser.push(", n") == []
    assert parser.push("=1") == [ToolCallArguments(0, '"')]
    assert parser.push("2)") == [ToolCallArguments(0, ', "n": 12}')]
    assert parser.push(f"]{END}") == []
    assert parser.flush() == []


def test_json_form_streams_its_arguments_too() -> None:
    parser = ToolCallParser(TOOLS, make_id=number_ids())
    parser.push(START + '[{"name": "f"')
    assert parser.push(', "') == [ToolCallStarted(0, "call_0", "f")]
    assert parser.push('arguments": {"a": "x') == [ToolCallArguments(0, '{"a": "x')]
    assert parser.push("y") == [ToolCallArguments(0, "y")]


def test_answer_that_is_cut_leaves_valid_json_and_says_so() -> None:
    parser, text = parse_with_text(f'{START}[g(), f(a="half')
    assert [call.arguments for call in parser.calls] == ["{}", '{"a": "half"}']
    assert parser.broken == {1}
    assert text == ""
    # The last digits may be missing: such a number is no argument.
    parser, text = parse_with_text(f"{START}[f(n=12")
    assert parser.calls[0].arguments == "{}"
    assert text == "n=12"


def test_missing_end_mark_harms_no_whole_call() -> None:
    parser, text = parse_with_text(f"{START}[g(v=1)]")
    assert (parser.calls[0].arguments, text, parser.broken) == ('{"v": 1}', "", frozenset())


def test_several_blocks_are_counted_on() -> None:
    parser, text = parse_with_text(f"{START}[g()]{END}\n{START}[f(n=1)]{END}\n\nDone.")
    assert [call.name for call in parser.calls] == ["g", "f"]
    assert text == "Done."


def test_second_start_mark_ends_the_block_before_it() -> None:
    parser, _ = parse_with_text(f"{START}[g(v=1){START}[f(n=1)]{END}")
    assert [call.arguments for call in parser.calls] == ['{"v": 1}', '{"n": 1}']


def test_unknown_function_is_a_call_within_marks() -> None:
    assert parse(f"{START}[unknown(a=1)]{END}").calls[0].name == "unknown"


def test_without_tools_calls_are_text_and_marks_are_hidden() -> None:
    parser, text = parse_with_text(f"Hi {START}[f(a=1)]{END}!", tools=None, size=1)
    assert parser.calls == ()
    assert text == "Hi [f(a=1)]!"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('[{"name": "f", "arguments": {"a": "v"}}]', ""),
        ('{"name": "f", "parameters": {"a": "v"}}\nDone', "Done"),
        (' \n{"arguments": {"a": "v"}, "name": "f"}', ""),
        ('[f(a="v")]', ""),
        ('[f(a="v")] and so on', "and so on"),
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_bare_call_of_a_known_tool_at_the_beginning_is_a_call(
    text: str, rest: str, size: int | None
) -> None:
    parser, shown = parse_with_text(text, size=size)
    assert [(call.name, json.loads(call.arguments)) for call in parser.calls] == [("f", {"a": "v"})]
    assert shown == rest


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 3}',
        '{"name": "f"}',
        '{"name": "f", "age": 3}',
        '{"title": "f", "arguments": {}}',
        '[{"name": "other", "arguments": {}}]',
        "[other(a=1)]",
        "[f] is a list",
        'Use f: [f(a="v")]',
        '"f"',
        "[",
        "  ",
        "",
        "f(a=1)",
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_other_text_at_the_beginning_stays_text(text: str, size: int | None) -> None:
    parser, shown = parse_with_text(text, size=size)
    assert parser.calls == ()
    assert shown == text


def test_text_that_is_no_bare_call_is_shown_at_once() -> None:
    parser = ToolCallParser(TOOLS)
    assert parser.push("Hello") == [TextDelta("Hello")]
    parser = ToolCallParser(TOOLS)
    assert parser.push('{"title"') == []
    assert parser.push(': "') == [TextDelta('{"title": "')]


def test_ids_are_random_and_look_like_openais() -> None:
    ids = {make_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 29 and i.startswith("call_") and int(i[5:], 16) >= 0 for i in ids)


def test_parts_say_which_choice_they_are_of() -> None:
    parser = ToolCallParser(TOOLS, choice=2)
    parts = [*parser.push(f"Hi{START}[g()]{END}"), *parser.flush()]
    assert {part.choice for part in parts} == {2}
