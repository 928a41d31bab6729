"""/v1/responses, as OpenAI's own client sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from lfm2_deploy.answers.events import ReasoningDelta, TextDelta

from .fake_engine import Reply, call_tool, say

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def test_whole_response_has_text_and_usage(serve: Callable[..., Any]) -> None:
    server = serve(say("Hello"))
    reply = server.openai.responses.create(model="tiny", input="Hi", instructions="Be kind.")
    assert reply.output_text == "Hello"
    assert reply.status == "completed"
    assert reply.usage.input_tokens_details.cached_tokens == 5
    asked = server.engine.calls[0].prompt
    assert asked[0] == {"role": "system", "content": "Be kind."}
    assert asked[1] == {"role": "user", "content": "Hi"}


def test_stream_names_every_step_in_order(serve: Callable[..., Any]) -> None:
    parts = (ReasoningDelta("Hm."), TextDelta("Hel"), TextDelta("lo"), *call_tool("weather", "{}"))
    with serve(Reply(parts)).openai.responses.stream(
        model="tiny", input="Hi", tools=[WEATHER]
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    names = [event.type.removeprefix("response.") for event in events]
    assert names == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output_text == "Hello"


def test_functions_go_both_ways(serve: Callable[..., Any]) -> None:
    server = serve(Reply(call_tool("weather", '{"city": "Oslo"}')), say("Rain."))
    create = server.openai.responses.create
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}]
    first = create(model="tiny", input=asked, tools=[WEATHER])
    call = first.output[0]
    assert call.arguments == '{"city": "Oslo"}'
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    summary = [{"type": "summary_text", "text": "Hm."}]
    thought = {"type": "reasoning", "id": "rs_1", "summary": summary}
    told = [*asked, thought, call.model_dump(exclude_none=True), result]
    assert create(model="tiny", input=told, tools=[WEATHER]).output_text == "Rain."
    user, assistant, tool = server.engine.calls[1].prompt
    assert user["content"] == "Weather?"
    assert assistant["reasoning_content"] == "Hm."
    assert assistant["tool_calls"][0]["function"]["name"] == "weather"
    assert tool == {"role": "tool", "tool_call_id": call.call_id, "content": "rain"}
    assert server.engine.calls[1].tools[0]["function"]["name"] == "weather"


def test_previous_response_is_gone_on_from(serve: Callable[..., Any]) -> None:
    server = serve(say("I am well."))
    create = server.openai.responses.create
    first = create(model="tiny", input="How are you?", instructions="Once.")
    create(model="tiny", input="Good.", previous_response_id=first.id)
    roles = [(m["role"], m["content"]) for m in server.engine.calls[1].prompt]
    # Instructions are of one response only.
    assert roles == [("user", "How are you?"), ("assistant", "I am well."), ("user", "Good.")]
    assert server.openai.responses.retrieve(first.id).output_text == "I am well."
    server.openai.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        create(model="tiny", input="Good.", previous_response_id=first.id)


def test_response_that_is_not_stored_or_old_is_not_found(client: Callable[..., Any]) -> None:
    made = client(kept_responses=1)
    ids = [
        made.post("/v1/responses", json={"input": "x", "store": store}).json()["id"]
        for store in (True, True, False)
    ]
    found = [made.get(f"/v1/responses/{one}").status_code for one in ids]
    assert found == [404, 200, 404]


def test_response_of_another_key_is_not_found(client: Callable[..., Any]) -> None:
    made = client(api_keys=("first", "second"))
    first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
    one = made.post("/v1/responses", json={"input": "x"}, headers=first).json()["id"]
    body = {"input": "x", "previous_response_id": one}
    assert made.post("/v1/responses", json=body, headers=second).status_code == 404
    assert made.get(f"/v1/responses/{one}", headers=second).status_code == 404
    assert made.delete(f"/v1/responses/{one}", headers=second).status_code == 404
    assert made.post("/v1/responses", json=body, headers=first).status_code == 200
    assert made.delete(f"/v1/responses/{one}", headers=first).status_code == 200


def test_parsed_response_follows_its_schema(serve: Callable[..., Any]) -> None:
    class Person(BaseModel):
        name: str

    server = serve(say('{"name": "Ada"}'))
    reply = server.openai.responses.parse(model="tiny", input="Who?", text_format=Person)
    assert reply.output_parsed == Person(name="Ada")
    assert server.engine.calls[0].overrides["grammar"].kind == "json_schema"


def test_answer_cut_by_its_limit_is_incomplete(client: Callable[..., Any]) -> None:
    body = {"input": "x", "max_output_tokens": 1}
    reply = client(say("a", reason="length")).post("/v1/responses", json=body).json()
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("ending", "reason"), [("length", "max_output_tokens"), ("stop", "stop_sequence")]
)
def test_call_that_was_cut_is_no_completed_one(
    serve: Callable[..., Any], ending: str, reason: str
) -> None:
    whole, cut = call_tool("weather", "{}"), call_tool("weather", '{"city": "O', index=1)
    server = serve(Reply((*whole, *cut), reason=ending))
    asked: dict[str, Any] = {"model": "tiny", "input": "Weather?", "tools": [WEATHER]}
    reply = server.openai.responses.create(**asked)
    with server.openai.responses.stream(**asked) as stream:
        events = list(stream)
    told = events[-1].response
    assert events[-1].type == "response.incomplete"
    for response in (reply, told):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == reason
        calls = [(item.arguments, item.status) for item in response.output]
        assert calls == [("{}", "completed"), ('{"city": "O', "incomplete")]
    # A program that calls what is done must not call it.
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ["{}"]
    items = [event.item.status for event in events if event.type == "response.output_item.done"]
    assert items == ["completed", "incomplete"]


def test_failure_in_a_stream_is_a_failed_response(client: Callable[..., Any]) -> None:
    reply = Reply((TextDelta("a"),), error=RuntimeError("secret"))
    text = client(reply).post("/v1/responses", json={"input": "x", "stream": True}).text
    assert "event: response.failed" in text
    assert "secret" not in text


def test_choice_of_tools_reaches_the_engine_as_it_is(client: Callable[..., Any]) -> None:
    made = client()
    one = {"type": "function", "name": "weather"}
    few = {"type": "allowed_tools", "mode": "required", "tools": [one]}
    for choice in (one, few):
        body = {"input": "x", "tools": [WEATHER], "tool_choice": choice}
        assert made.post("/v1/responses", json=body).status_code == 200
    assert [call.tool_choice for call in made.engine.calls] == [one, few]
    other = {"type": "function", "name": "clock"}
    few = {"type": "allowed_tools", "mode": "required", "tools": [one, other]}
    body = {"input": "x", "tools": [WEATHER], "tool_choice": few}
    reply = made.post("/v1/responses", json=body)
    assert reply.status_code == 400
    assert "'clock', which is none of" in reply.json()["error"]["message"]
