"""/v1/chat/completions, as OpenAI's own client sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from lfm2_deploy.answers.events import ReasoningDelta, TextDelta
from lfm2_deploy.sampling import TokenLogprobs

from .fake_engine import Reply, call_tool, read_demo, say

ASK = [{"role": "user", "content": "Hi"}]
LARK = {"syntax": "lark", "definition": "start: /a/"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_whole_answer_has_text_reason_and_usage(serve: Callable[..., Any]) -> None:
    server = serve(say("Hello", " there"))
    reply = server.openai.chat.completions.create(model="tiny", messages=ASK)
    assert reply.choices[0].message.content == "Hello there"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == 12
    assert reply.usage.prompt_tokens_details.cached_tokens == 5
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0
    assert reply.usage.model_extra["x_lfm2"]["prompt_tokens_per_second"] == 14  # (12 - 5) / 0.5 s


def test_streamed_chunks_join_to_the_whole_answer(serve: Callable[..., Any]) -> None:
    server = serve(Reply((ReasoningDelta("Hm. "), TextDelta("Hello"), TextDelta(" there"))))
    chunks = list(
        server.openai.chat.completions.create(
            model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Hello there"
    thought = (delta.model_extra.get("reasoning_content") or "" for delta in deltas)
    assert "".join(thought) == "Hm. "
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 15
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0


def test_stream_without_usage_ends_with_the_reason(client: Callable[..., Any]) -> None:
    reply = client().post(
        "/v1/chat/completions", json={"messages": ASK, "model": "alias", "stream": True}
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in last
    assert last["model"] == "alias"


@pytest.mark.anyio
async def test_asynchronous_client_streams(serve: Callable[..., Any]) -> None:
    url = serve(say("a", "b")).url
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = await client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "ab"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_tool_conversation_goes_both_ways(serve: Callable[..., Any]) -> None:
    server = serve(Reply(call_tool("weather", '{"city":', ' "Oslo"}')), say("It rains."))
    create = server.openai.chat.completions.create
    first = create(model="tiny", messages=ASK, tools=[WEATHER])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    told = [*ASK, message.model_dump(exclude_none=True), result]
    second = create(model="tiny", messages=told, tools=[WEATHER], tool_choice="none")
    assert second.choices[0].message.content == "It rains."
    asked, again = server.engine.calls
    assert asked.tools[0]["function"]["name"] == "weather"
    assert again.tool_choice == "none"
    assert [m["role"] for m in again.prompt] == ["user", "assistant", "tool"]
    assert again.prompt[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert again.prompt[2]["tool_call_id"] == message.tool_calls[0].id


def test_streamed_tool_calls_join_by_index(serve: Callable[..., Any]) -> None:
    parts = (*call_tool("weather", '{"a"', ":1}"), *call_tool("weather", "{}", index=1))
    with serve(Reply(parts)).openai.chat.completions.stream(
        model="tiny", messages=ASK, tools=[WEATHER]
    ) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert [call.function.arguments for call in calls] == ['{"a":1}', "{}"]
    assert calls[0].id != calls[1].id


@pytest.mark.parametrize("n", [1, 2])
def test_call_that_was_cut_is_the_same_whole_and_streamed(
    client: Callable[..., Any], n: int
) -> None:
    parts = (TextDelta("So: "), *call_tool("weather", '{"city"', ': "O'))
    made = client(Reply(parts, reason="length"))
    body = {"messages": ASK, "tools": [WEATHER], "n": n}
    whole = made.post("/v1/chat/completions", json=body).json()["choices"]
    text = made.post("/v1/chat/completions", json={**body, "stream": True}).text
    lines = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    for choice in whole:
        chunks = [c for line in lines for c in line["choices"] if c["index"] == choice["index"]]
        calls = [call for c in chunks for call in c["delta"].get("tool_calls", ())]
        arguments = "".join(call["function"]["arguments"] for call in calls)
        assert arguments == choice["message"]["tool_calls"][0]["function"]["arguments"]
        assert arguments == '{"city": "O'
        content = "".join(c["delta"].get("content", "") for c in chunks)
        assert content == choice["message"]["content"] == "So: "
        assert chunks[-1]["finish_reason"] == choice["finish_reason"] == "length"


@pytest.mark.parametrize("streams", [False, True])
def test_parallel_calls_refused_leaves_the_first(client: Callable[..., Any], streams: bool) -> None:
    parts = (*call_tool("weather", "{}"), *call_tool("weather", "{}", index=1))
    body = {"messages": ASK, "tools": [WEATHER], "parallel_tool_calls": False, "stream": streams}
    made = client(Reply(parts))
    text = made.post("/v1/chat/completions", json=body).text
    assert "call_0" in text
    assert "call_1" not in text
    assert made.engine.calls[0].parallel_tool_calls is False


def test_parsed_answer_follows_its_schema(serve: Callable[..., Any]) -> None:
    class Person(BaseModel):
        name: str

    server = serve(say('{"name": "Ada"}'))
    reply = server.openai.chat.completions.parse(model="tiny", messages=ASK, response_format=Person)
    assert reply.choices[0].message.parsed == Person(name="Ada")
    grammar = server.engine.calls[0].overrides["grammar"]
    assert grammar.kind == "json_schema"


def test_logprobs_come_with_bytes(client: Callable[..., Any]) -> None:
    text = read_demo()[0].token_text(34)
    top = ((34, -0.5), (35, -9e99))
    made = client(Reply((TextDelta(text, (TokenLogprobs(34, -0.5, top),)),)))
    body = {"messages": ASK, "logprobs": True, "top_logprobs": 2}
    choice = made.post("/v1/chat/completions", json=body).json()["choices"][0]
    entry = choice["logprobs"]["content"][0]
    tokenizer = made.engine.model.tokenizer
    assert bytes(entry["bytes"]) == tokenizer.token_bytes(34)
    assert entry["logprob"] == -0.5
    assert entry["top_logprobs"][1]["logprob"] == -9999.0  # as OpenAI tells what could not be
    assert made.engine.calls[0].overrides["logprobs"] == 2


def test_several_choices_are_in_order(serve: Callable[..., Any]) -> None:
    reply = serve(say("x")).openai.chat.completions.create(model="tiny", messages=ASK, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage.completion_tokens == 3


def test_options_reach_the_engine_by_their_names(client: Callable[..., Any]) -> None:
    made = client()
    body = {
        "messages": [
            {"role": "developer", "content": [
                {"type": "text", "text": "Be"}, {"type": "text", "text": " kind"}]},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo", "reasoning_content": "thought"},
            {"role": "user", "content": "?"},
        ],
        "temperature": 0.5, "top_p": 0, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": -100}, "seed": -1,
        "stop": "END", "max_completion_tokens": 7, "ignore_eos": True,
        "chat_template_kwargs": {"keep_past_thinking": True}, "someday": "a field of tomorrow",
    }  # fmt: skip
    assert made.post("/v1/chat/completions", json=body).status_code == 200
    call = made.engine.calls[0]
    assert call.prompt[0] == {"role": "system", "content": "Be kind"}
    assert call.prompt[2]["reasoning_content"] == "thought"
    assert call.template_options == {"keep_past_thinking": True}
    assert call.overrides == {
        "temperature": 0.5, "top_p": 1e-9, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {5: -100},
        "seed": 2**63 - 1, "stop": ["END"], "max_new_tokens": 7, "ignore_eos": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "grammar", "grammar": LARK}}, "lark"),
        ({"guided_regex": "a+"}, "regex"),
        ({"guided_json": {"type": "object"}}, "json_schema"),
        ({"structured_outputs": {"choice": ["a.", "b"]}}, "regex"),
    ],
)  # fmt: skip
def test_grammar_of_any_spelling_reaches_the_engine(
    client: Callable[..., Any], field: dict[str, Any], kind: str
) -> None:
    made = client()
    reply = made.post("/v1/chat/completions", json={"messages": ASK, **field})
    assert reply.status_code == 200, reply.text
    assert made.engine.calls[0].overrides["grammar"].kind == kind


def test_choice_of_tools_reaches_the_engine_as_it_is(client: Callable[..., Any]) -> None:
    made = client()
    one = {"type": "function", "function": {"name": "weather"}}
    few = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [one]}}
    for choice in (one, few):
        body = {"messages": ASK, "tools": [WEATHER], "tool_choice": choice}
        assert made.post("/v1/chat/completions", json=body).status_code == 200
    assert [call.tool_choice for call in made.engine.calls] == [one, few]
    other = {"type": "function", "function": {"name": "clock"}}
    few = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [one, other]}}
    body = {"messages": ASK, "tools": [WEATHER], "tool_choice": few}
    reply = made.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert "'clock', which is none of" in reply.json()["error"]["message"]
