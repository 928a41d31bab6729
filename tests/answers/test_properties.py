"""What holds for every text: cuts change nothing, JSON is valid, and what is written is read."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2_deploy.answers.events import Part, ReasoningDelta, TextDelta, ToolCallArguments
from lfm2_deploy.answers.parser import AnswerParser
from lfm2_deploy.answers.written_calls import write_calls
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL

TOOLS = [
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string"}, "n": {"type": "integer"}},
        },
    },
    {"name": "g"},
]
MARKS = ("<|tool_call_start|>", "<|tool_call_end|>")
# Pieces of which likely and unlikely answers consist.
FRAGMENTS = st.sampled_from(
    [
        *MARKS,
        *MARKS,
        "<think>",
        "</think>",
        "<|tool",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        ",",
        ":",
        "=",
        "==",
        ";",
        "*",
        "**",
        "f",
        "g(",
        "f(a=",
        "n=",
        '"name": ',
        '"f"',
        '"arguments": ',
        '{"name": "f", "arguments": {',
        '[{"name": "g"',
        "'",
        '"',
        "'''",
        "\\",
        "\\n",
        "\\'",
        "\\u00e9",
        "\\ud83d",
        "\\x4",
        "True",
        "null",
        "12",
        "-.5e3",
        " ",
        "\n",
        "é🙂",
        "text",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=40).map("".join)


def parse(pieces: list[str], tools: Any = TOOLS) -> tuple[AnswerParser, list[Part]]:
    parser = AnswerParser(tools=tools, make_id=lambda: "call")
    parts = [part for piece in pieces for part in parser.push(piece)]
    return parser, [*parts, *parser.flush()]


def joined(parser: AnswerParser) -> tuple[Any, ...]:
    return parser.reasoning, parser.text, parser.tool_calls, parser.broken_calls


@settings(deadline=None, derandomize=True, max_examples=150)
@given(text=TEXTS, data=st.data(), has_tools=st.booleans())
def test_cuts_change_nothing(text: str, data: st.DataObject, has_tools: bool) -> None:
    tools = TOOLS if has_tools else None
    whole, _ = parse([text], tools)
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert joined(parse(pieces, tools)[0]) == joined(whole)
    assert joined(parse([*text], tools)[0]) == joined(whole)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(text=TEXTS)
def test_arguments_are_always_an_object_and_marks_never_shown(text: str) -> None:
    parser, parts = parse([*text])
    for call in parser.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
    for mark in MARKS:
        assert mark not in parser.text
        assert mark not in parser.reasoning
    assert parser.text == "".join(part.text for part in parts if isinstance(part, TextDelta))
    thoughts = (part.text for part in parts if isinstance(part, ReasoningDelta))
    assert parser.reasoning == "".join(thoughts)
    for index, call in enumerate(parser.tool_calls):
        pieces = (p.text for p in parts if isinstance(p, ToolCallArguments) and p.index == index)
        assert call.arguments == "".join(pieces)


@settings(deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab <|>/[]{}()\"'=,:\n", max_size=60))
def test_text_without_marks_and_tools_comes_back_whole(text: str) -> None:
    assert parse([*text], None)[0].text == text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.text(alphabet="abXY09_-", min_size=1, max_size=8)
CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=5)),
    min_size=1,
    max_size=3,
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(calls=CALLS)
def test_calls_that_are_written_are_read_back(calls: list[tuple[str, dict[str, Any]]]) -> None:
    parser, _ = parse([*write_calls(calls)], [])
    assert [(call.name, json.loads(call.arguments)) for call in parser.tool_calls] == calls
    assert parser.text == ""
    assert not parser.broken_calls


# A template writes values as Jinja prints them: marks within them are not escaped there.
PLAIN_CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=5)), min_size=1, max_size=3
).filter(lambda calls: not any(mark in str(calls) for mark in MARKS))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(calls=PLAIN_CALLS)
def test_calls_that_a_template_renders_are_read_back(
    calls: list[tuple[str, dict[str, Any]]],
) -> None:
    template = ChatTemplate.from_folder(DEMO_MODEL, {"bos_token": ""})
    listed = [{"function": {"name": name, "arguments": values}} for name, values in calls]
    text = template.render(
        [{"role": "assistant", "tool_calls": listed}], add_generation_prompt=False
    )
    written = text.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")
    parser, _ = parse([written], [])
    assert [(call.name, json.loads(call.arguments)) for call in parser.tool_calls] == calls
    assert parser.text == ""
