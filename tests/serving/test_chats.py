"""Chats of an engine: reasoning and calls of tools are events, and what is forced is called."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import lfm2_deploy
from lfm2_deploy.answers.events import (
    Answer,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
)
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError, RequestError, TemplateError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.serving.engine import Engine, EngineLimits
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, scripted_logits

VOCAB, CONTEXT, EOS = 4096, 1000, 7
HELLO = [{"role": "user", "content": "Weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}


def answering(tokenizer: Tokenizer, reply: str, opening: str = "") -> LanguageModel:
    """A model whose every chat is answered by one text; `opening` ends its prompts."""
    source = ChatTemplate.from_folder(DEMO_MODEL, tokenizer.special_tokens).source
    template = ChatTemplate(source + opening, tokenizer.special_tokens)
    ids = tokenizer.encode(reply, add_special_tokens=False)

    def logits(tokens: Sequence[int]) -> Any:
        return scripted[0](tokens)

    model = LanguageModel(
        FakeRuntime(logits, vocab_size=VOCAB, context_length=CONTEXT, eos_token_ids=(EOS,)),
        tokenizer,
        template,
    )
    prompts = [
        tuple(model.encode_prompt(HELLO, tools=tools))
        for tools in (None, [WEATHER["function"]], [CLOCK])
    ]
    scripted = [scripted_logits(VOCAB, dict.fromkeys(prompts, ids), EOS)]
    return model


def collect(engine: Engine, **options: Any) -> tuple[list[Any], Answer]:
    *events, last = engine.stream(HELLO, **options)
    assert isinstance(last, Finished)
    return events, last.answer


def text_of(events: Sequence[Any], kind: type[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def test_call_of_a_tool_comes_as_events_and_ends_the_answer(tokenizer: Tokenizer) -> None:
    written = 'Let me see. <|tool_call_start|>[get_weather(city="Oslo", days=3)]<|tool_call_end|>'
    with Engine(answering(tokenizer, written)) as engine:
        events, answer = collect(engine, tools=[WEATHER])
    (started,) = [event for event in events if isinstance(event, ToolCallStarted)]
    assert started.name == "get_weather"
    assert json.loads(text_of(events, ToolCallArguments)) == {"city": "Oslo", "days": 3}
    assert answer.finish_reason == "tool_calls"
    assert answer.text == text_of(events, TextDelta) == "Let me see. "
    assert [call.id for call in answer.tool_calls] == [started.id]


STRICT = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
ROME = 'See: <|tool_call_start|>[get_weather(city="Rome")]<|tool_call_end|>'
OSLO = '<|tool_call_start|>[get_weather(city="Oslo")]<|tool_call_end|>'


def test_strict_tool_is_called_by_its_schema_or_not_at_all(tokenizer: Tokenizer) -> None:
    told = []
    for written in (ROME, f"See: {OSLO}", "It rains."):
        with Engine(answering(tokenizer, written)) as engine:
            told.append(collect(engine, tools=[STRICT], temperature=0, max_new_tokens=60)[1])
    wrong, right, text = told
    cut = () if wrong.cut_call is None else (wrong.cut_call,)
    calls = [call.arguments for call in (*wrong.tool_calls, *cut)]
    assert calls  # the model began one, and could not give it an argument of its own
    assert not any("Rome" in arguments for arguments in calls)
    assert (right.text, json.loads(right.tool_calls[0].arguments)) == ("See: ", {"city": "Oslo"})
    assert (text.text, text.tool_calls) == ("It rains.", ())


def test_tool_that_is_not_strict_is_called_as_the_model_likes(tokenizer: Tokenizer) -> None:
    with Engine(answering(tokenizer, ROME)) as engine:
        _, answer = collect(engine, tools=[WEATHER])
    assert json.loads(answer.tool_calls[0].arguments) == {"city": "Rome"}


@pytest.mark.parametrize("opening", ["", "<think>\n"])
@pytest.mark.parametrize("grammar", [Grammar.json_schema({"const": {"a": 1}}), Grammar.json()])
def test_answer_of_a_schema_may_call_tools_instead(
    tokenizer: Tokenizer, grammar: Grammar, opening: str
) -> None:
    told = []
    thought = "Hm.</think>" if opening else ""
    for written in (OSLO, '{"a": 1}'):
        model = answering(tokenizer, thought + written, opening=opening)
        with Engine(model) as engine:
            told.append(collect(engine, tools=[WEATHER], grammar=grammar, temperature=0)[1])
    call, answer = told
    assert (call.text, json.loads(call.tool_calls[0].arguments)) == ("", {"city": "Oslo"})
    assert (answer.text, answer.tool_calls) == ('{"a": 1}', ())


def test_call_that_is_cut_by_the_limit_is_not_among_the_calls(tokenizer: Tokenizer) -> None:
    written = '<|tool_call_start|>[get_weather(city="Oslo", days=3)]<|tool_call_end|>'
    with Engine(answering(tokenizer, written)) as engine:
        events, answer = collect(engine, tools=[WEATHER], max_new_tokens=12)
    assert any(isinstance(event, ToolCallStarted) for event in events)
    assert (answer.finish_reason, answer.tool_calls) == ("length", ())
    # Nothing that could be taken for the whole, and nothing of how calls are written.
    assert answer.cut_call is not None
    assert answer.cut_call.arguments == text_of(events, ToolCallArguments)
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.cut_call.arguments)
    assert answer.text == ""


@pytest.mark.parametrize("length", range(1, 18))
def test_call_that_is_cut_anywhere_leaves_no_text(tokenizer: Tokenizer, length: int) -> None:
    written = '<|tool_call_start|>[get_weather(city="Oslo", days=3)]<|tool_call_end|>'
    with Engine(answering(tokenizer, written)) as engine:
        _, answer = collect(engine, tools=[WEATHER], max_new_tokens=length)
    assert answer.text == ""


def test_reasoning_is_told_apart(tokenizer: Tokenizer) -> None:
    with Engine(answering(tokenizer, "<think>It is far.</think>\n\nFar away.")) as engine:
        events, answer = collect(engine)
    assert text_of(events, ReasoningDelta).strip() == answer.reasoning.strip() == "It is far."
    assert answer.text == "Far away."


def test_reasoning_that_the_prompt_opened_is_told_apart(tokenizer: Tokenizer) -> None:
    model = answering(tokenizer, "It is far.</think>Far away.", opening="<think>\n")
    with Engine(model) as engine:
        _, answer = collect(engine)
    assert (answer.reasoning, answer.text) == ("It is far.", "Far away.")


def test_schema_is_followed_after_the_reasoning_that_the_prompt_opened(
    tokenizer: Tokenizer,
) -> None:
    reasoning = "Yes or no? I think so.</think>"
    model = answering(tokenizer, reasoning, opening="<think>\n")
    with Engine(model) as engine:
        _, answer = collect(engine, grammar=Grammar.regex("yes|no"), max_new_tokens=40)
    assert answer.reasoning == "Yes or no? I think so."
    assert answer.text in ("yes", "no")
    assert answer.finish_reason == "stop"


def test_plain_text_is_never_parsed(tokenizer: Tokenizer) -> None:
    model = answering(tokenizer, "<think>x</think>y")
    prompt = model.encode_prompt(HELLO)
    with Engine(model) as engine:
        assert engine.generate(prompt).text == "<think>x</think>y"


@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        ([{"role": "robot", "content": "x"}], {}, TemplateError),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, TemplateError),
        ([], {}, GenerationError),
        (HELLO, {"tools": [{"name": "bad name"}]}, TemplateError),
        (HELLO, {"tools": [WEATHER], "tool_choice": "get_wether"}, RequestError),
        (HELLO, {"tool_choice": "required"}, RequestError),
        (
            HELLO,
            {"tools": [WEATHER], "tool_choice": "required", "grammar": Grammar.json()},
            RequestError,
        ),
        (HELLO, {"tools": [WEATHER], "grammar": Grammar.regex("a")}, RequestError),
    ],
)
def test_chat_that_cannot_be_answered_is_refused_at_once(
    tokenizer: Tokenizer, messages: Any, options: Any, error: type[Exception]
) -> None:
    with Engine(answering(tokenizer, "x")) as engine, pytest.raises(error):
        engine.stream(messages, **options)


# The demo model was never taught to call anything: what it does here, grammars have it do.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    out: Path = tmp_path_factory.mktemp("chats") / "demo"
    bundle = lfm2_deploy.export(str(DEMO_MODEL), out, precision="fp32")
    with Engine.load(bundle, limits=EngineLimits(running=2)) as engine:
        yield engine


@pytest.mark.parametrize("seed", range(4))
def test_function_that_is_named_is_called_once(demo: Engine, seed: int) -> None:
    answer = demo.generate(
        HELLO, tools=[WEATHER, CLOCK], tool_choice="get_weather", seed=seed, max_new_tokens=80
    )
    (call,) = answer.tool_calls
    arguments = json.loads(call.arguments)
    assert (call.name, answer.finish_reason) == ("get_weather", "tool_calls")
    assert arguments["city"] in ("Paris", "Oslo")
    assert isinstance(arguments.get("days", 0), int)


def test_one_call_of_any_tool_is_made_where_several_are_not_wanted(demo: Engine) -> None:
    answer = demo.generate(
        HELLO,
        tools=[WEATHER, CLOCK],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=3,
        max_new_tokens=80,
    )
    assert len(answer.tool_calls) == 1


def test_conversation_goes_on_with_what_a_tool_gave(demo: Engine) -> None:
    first = demo.generate(HELLO, tools=[WEATHER], tool_choice="get_weather", max_new_tokens=80)
    (call,) = first.tool_calls
    asked = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    turn = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'},
    ]
    second = demo.generate(turn, tools=[WEATHER], max_new_tokens=8)
    assert second.text
    # The prompt up to the call was read before.
    assert second.usage.reused_tokens > 100


def test_answers_at_once_each_follow_their_own_schema(demo: Engine) -> None:
    schemas = [
        {
            "type": "object",
            "properties": {key: {"enum": [1, 2, 3]}},
            "required": [key],
            "additionalProperties": False,
        }
        for key in ("a", "b", "c")
    ]
    streams = [
        demo.stream(HELLO, grammar=Grammar.json_schema(schema), max_new_tokens=60, seed=1)
        for schema in schemas
    ]
    for key, stream in zip("abc", streams, strict=True):
        assert json.loads(stream.answers()[0].text)[key] in (1, 2, 3)
