"""Grammars of calls let through what tools' schemas allow, and nothing else."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import llguidance
import pytest

from lfm2_deploy.answers.marks import CALL_END, CALL_START
from lfm2_deploy.answers.parser import AnswerParser
from lfm2_deploy.answers.tool_grammar import build_tool_grammar
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GrammarError
from lfm2_deploy.tokenizer import Tokenizer

MARKS = (CALL_START, CALL_END)
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
OPTIONAL = {
    "name": "find",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"type": "number"}},
        "required": ["b"],
    },
}


@pytest.fixture(scope="module")
def backend() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer((DEMO_MODEL / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@pytest.fixture
def accepts(backend: llguidance.LLTokenizer, tokenizer: Tokenizer) -> Any:
    """Whether a whole answer follows a grammar; its marks are special tokens."""

    def check(grammar: str, text: str) -> bool:
        lark = llguidance.LLMatcher.grammar_from_lark(grammar)
        is_bad, messages = llguidance.LLMatcher.validate_grammar_with_warnings(lark, backend)
        assert not is_bad, messages
        assert not messages
        matcher = llguidance.LLMatcher(backend, lark)
        ids = tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())

    return check


def mark(calls: str) -> str:
    return f"{CALL_START}[{calls}]{CALL_END}"


@pytest.mark.parametrize(
    "calls",
    [
        'weather(city="Łódź")',
        'weather(city="a", days=3)',
        'weather(city="a", unit="F")',
        'weather(city="a", days=-3, unit="C"), clock(), clock()',
        "find(b=null)",
        "find(a=true, b=null, c=1.5)",
        "find(b=null, c=2)",
    ],
)
def test_calls_that_fit_the_schemas_are_let_through_and_parsed(accepts: Any, calls: str) -> None:
    tools = [WEATHER, CLOCK, OPTIONAL]
    assert accepts(build_tool_grammar(tools, special_marks=MARKS), mark(calls))
    parser = AnswerParser(tools=tools)
    parser.push(mark(calls))
    parser.flush()
    assert len(parser.tool_calls) == calls.count("(")
    assert not parser.text
    assert not parser.broken_calls


@pytest.mark.parametrize(
    "calls",
    [
        "weather()",
        "weather(days=3)",
        "weather(city=3)",
        'weather(city="a", days=1.5)',
        'weather(city="a", unit="K")',
        'weather(city="a", wind=1)',
        'weather(days=3, city="a")',
        'weather(city="a",days=3)',
        "clock(a=1)",
        "clocks()",
        "",
        "clock(), ",
    ],
)
def test_calls_that_do_not_fit_are_stopped(accepts: Any, calls: str) -> None:
    assert not accepts(build_tool_grammar([WEATHER, CLOCK], special_marks=MARKS), mark(calls))


def test_required_calls_leave_no_room_for_text(accepts: Any) -> None:
    grammar = build_tool_grammar([CLOCK], special_marks=MARKS)
    assert accepts(grammar, mark("clock()"))
    assert not accepts(grammar, "Hello")
    assert not accepts(grammar, "Hello" + mark("clock()"))


def test_calls_that_are_not_required_may_stand_in_text(accepts: Any) -> None:
    grammar = build_tool_grammar([CLOCK], special_marks=MARKS, required=False)
    assert accepts(grammar, "Hello")
    assert accepts(grammar, "Hello" + mark("clock()") + mark("clock()"))
    assert not accepts(grammar, "Hello" + mark("other()"))


def test_number_of_calls_is_bounded(accepts: Any) -> None:
    once = build_tool_grammar([CLOCK], special_marks=MARKS, most_calls=1)
    assert accepts(once, mark("clock()"))
    assert not accepts(once, mark("clock(), clock()"))
    assert accepts(
        build_tool_grammar([CLOCK], special_marks=MARKS, most_calls=2), mark("clock(), clock()")
    )


def test_json_form_holds_name_and_arguments(accepts: Any) -> None:
    grammar = build_tool_grammar([WEATHER, CLOCK], special_marks=MARKS, form="json")
    assert accepts(grammar, mark('{"name": "weather", "arguments": {"city": "a"}}'))
    assert accepts(grammar, mark(", ".join(['{"name": "clock", "arguments": {}}'] * 2)))
    assert not accepts(grammar, mark('{"name": "weather", "arguments": {}}'))
    assert not accepts(grammar, mark('{"name": "other", "arguments": {}}'))
    assert not accepts(grammar, mark('weather(city="a")'))


@pytest.mark.parametrize("form", ["pythonic", "json"])
def test_definitions_are_found_from_every_argument(accepts: Any, form: Any) -> None:
    tool = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/tree"}},
            "required": ["x"],
            "additionalProperties": False,
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "integer"}},
                    "additionalProperties": False,
                }
            },
        },
    }
    grammar = build_tool_grammar([tool], special_marks=MARKS, form=form)
    value = '{"left": {"leaf": 1}}'
    written = {
        "pythonic": f"f(x={value})",
        "json": f'{{"name": "f", "arguments": {{"x": {value}}}}}',
    }
    assert accepts(grammar, mark(written[form]))
    assert not accepts(grammar, mark(written[form].replace("leaf", "loaf")))


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (
            {"type": "object", "properties": {"first name": {"type": "string"}}},
            '{"first name": "a"}',
        ),
        ({"anyOf": [{"type": "object", "properties": {"a": {"const": 1}}}]}, '{"a": 1}'),
        ({"type": "object", "additionalProperties": True}, '{"any": ["thing"]}'),
        ({"type": "object", "required": ["a"]}, '{"a": 1}'),
    ],
)
def test_arguments_that_have_no_names_of_their_own_are_written_as_json(
    accepts: Any, schema: dict[str, Any], arguments: str
) -> None:
    tool = {"name": "f", "parameters": schema}
    text = mark(f'{{"name": "f", "arguments": {arguments}}}, clock()')
    assert accepts(build_tool_grammar([tool, CLOCK], special_marks=MARKS), text)
    parser = AnswerParser(tools=[tool])
    parser.push(text)
    assert json.loads(parser.tool_calls[0].arguments) == json.loads(arguments)


def test_special_token_cannot_stand_in_a_value(accepts: Any) -> None:
    grammar = build_tool_grammar([WEATHER], special_marks=MARKS)
    assert not accepts(grammar, mark('weather(city="<|im_end|>")'))


@pytest.mark.parametrize("thoughts", ["", "I think.\n", "a</thin b\n\n"])
def test_thoughts_come_before_calls(accepts: Any, thoughts: str) -> None:
    may = build_tool_grammar([CLOCK], special_marks=MARKS, thinking="may")
    inside = build_tool_grammar([CLOCK], special_marks=MARKS, thinking="inside")
    text = f"{thoughts}</think>\n\n{mark('clock()')}"
    assert accepts(may, mark("clock()"))
    assert accepts(may, "<think>" + text)
    assert not accepts(may, text)
    assert accepts(inside, text)
    assert not accepts(inside, "</think>" + thoughts)


def test_marks_that_are_no_special_tokens_are_text(
    backend: llguidance.LLTokenizer, tokenizer: Tokenizer
) -> None:
    for required, text in ((True, mark("clock()")), (False, "Hi" + mark("clock()") + "Bye")):
        grammar = build_tool_grammar([CLOCK], special_marks=(), required=required)
        matcher = llguidance.LLMatcher(backend, llguidance.LLMatcher.grammar_from_lark(grammar))
        # One token for each character, so that the marks become ordinary ones.
        ids = [tokenizer.encode(character, add_special_tokens=False)[0] for character in text]
        assert matcher.try_consume_tokens(ids) == len(ids)
        assert matcher.is_accepting()


def test_no_tool_is_refused() -> None:
    with pytest.raises(GrammarError, match="at least one tool"):
        build_tool_grammar([], special_marks=MARKS)
    with pytest.raises(GrammarError, match="at least one tool"):
        build_tool_grammar([CLOCK], special_marks=MARKS, most_calls=0)


def test_arguments_bring_only_the_definitions_that_they_refer_to(accepts: Any) -> None:
    tool = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x~1y%20z"}, "b": {"type": "integer"}},
            "required": ["a"],
            "$defs": {
                "x/y z": {"type": "array", "items": {"$ref": "#/$defs/inner"}},
                "inner": {"enum": ["leaf"]},
                "unused": {"description": "d" * 20_000},
            },
        },
    }
    grammar = build_tool_grammar([tool], special_marks=MARKS)
    assert grammar.count('"inner"') == 1
    assert "ddd" not in grammar
    assert accepts(grammar, mark('f(a=["leaf"], b=1)'))
    assert not accepts(grammar, mark('f(a=["loaf"])'))


def test_definitions_that_many_arguments_refer_to_do_not_multiply() -> None:
    properties = {f"p{index}": {"$ref": "#/$defs/x"} for index in range(2_000)}
    definitions = {"x": {"description": "d" * 20_000}}
    schema = {"type": "object", "properties": properties, "$defs": definitions}
    tracemalloc.start()
    try:
        with pytest.raises(GrammarError, match="fewer tools"):
            build_tool_grammar([{"name": "f", "parameters": schema}], special_marks=MARKS)
        # All of them together have 40 MB; these are the four that show that it is too much.
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
