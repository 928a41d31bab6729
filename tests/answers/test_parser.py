"""A model's text becomes typed parts; tokens that mark calls are kept for that."""

from __future__ import annotations

import tokenizers

from lfm2_deploy.answers.events import (
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallStarted,
)
from lfm2_deploy.answers.parser import AnswerParser, markers
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.tokenizer import TextStream, Tokenizer

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
TOOLS = [{"name": "f", "parameters": {"type": "object", "properties": {}}}]


def test_answer_is_taken_apart_in_order() -> None:
    parser = AnswerParser(tools=TOOLS, choice=1, make_id=lambda: "call_x")
    parts = parser.push(f"<think>I see.</think>\n\nSure: {START}[f(a=1)]{END}")
    assert parts == [
        ReasoningDelta("I see.", choice=1),
        TextDelta("Sure: ", choice=1),
        ToolCallStarted(0, "call_x", "f", choice=1),
        ToolCallArguments(0, '{"a": 1}', choice=1),
    ]
    assert parser.flush() == []
    assert (parser.reasoning, parser.text) == ("I see.", "Sure: ")
    assert parser.tool_calls == (ToolCall("call_x", "f", '{"a": 1}'),)
    assert parser.broken_calls == frozenset()


def test_call_ends_reasoning_that_was_left_open() -> None:
    parser = AnswerParser(tools=TOOLS, starts_in_reasoning=True)
    parser.push(f"I need f. {END}{START}[f()]{END}")
    parser.flush()
    assert (parser.reasoning, parser.text) == ("I need f.", "")
    assert [call.name for call in parser.tool_calls] == ["f"]


def test_without_tools_marks_are_hidden_everywhere() -> None:
    parser = AnswerParser(tools=None)
    parser.push(f"<think>a {START}b{END} c</think>{START}[f()]{END}{END}")
    parser.flush()
    assert (parser.reasoning, parser.text) == ("a b c", "[f()]")
    assert parser.tool_calls == ()


def test_thoughts_about_calls_are_no_calls() -> None:
    parser = AnswerParser(tools=TOOLS)
    parser.push("<think>[f(a=1)]</think>[f(a=2)]")
    parser.flush()
    assert parser.reasoning == "[f(a=1)]"
    assert [call.arguments for call in parser.tool_calls] == ['{"a": 2}']


def test_cut_call_is_told() -> None:
    parser = AnswerParser(tools=TOOLS)
    parser.push(f'{START}[f(a="ha')
    parser.flush()
    assert parser.broken_calls == {0}
    assert parser.tool_calls[0].arguments == '{"a": "ha"}'


def test_markers_are_special_tokens_that_a_stream_keeps() -> None:
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    kept = markers(tokenizer)
    assert kept == {tokenizer.token_id(START), tokenizer.token_id(END)}
    ids = tokenizer.encode(f"{START}[f()]{END}<|im_end|>", add_special_tokens=False)
    stream = TextStream(tokenizer, kept=kept)
    parser = AnswerParser(tools=TOOLS)
    for token_id in ids:
        parser.push(stream.push(token_id))
    parser.flush()
    assert [call.name for call in parser.tool_calls] == ["f"]
    assert parser.text == ""


def test_marks_that_are_no_special_tokens_need_no_keeping() -> None:
    backend = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    text = backend.to_str().replace('"special":true', '"special":false')
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(text), {})
    assert markers(tokenizer) == frozenset()
