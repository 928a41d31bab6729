"""What is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.answers.events import TextDelta
from lfm2_deploy.errors import (
    ClosedError,
    ContextOverflowError,
    GenerationError,
    GrammarError,
    QueueFullError,
    TemplateError,
)

from .fake_engine import Reply, say

ASK = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
GBNF = {"syntax": "gbnf", "definition": "root ::= x"}
CHAT = "/v1/chat/completions"


def ask(**fields: Any) -> dict[str, Any]:
    return {"messages": ASK, **fields}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages: this field is missing"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "needs a content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "reads text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs a text"),
        (ask(temperature=3), "temperature"),
        (ask(temperature="1"), "temperature"),
        (ask(max_tokens=0), "max_tokens"),
        (ask(max_tokens=True), "max_tokens"),
        (ask(n=99), "n"),
        (ask(stop=["x"] * 17), "stop"),
        (ask(stop=""), "stop"),
        (ask(top_logprobs=3), "logprobs"),
        (ask(logprobs=True, top_logprobs=21), "top_logprobs"),
        (ask(logit_bias={"x": 1}), "no token id"),
        (ask(logit_bias={"1": 101}), "logit_bias"),
        (ask(chat_template="{{ 1 }}"), "chat_template"),
        (ask(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
        (ask(best_of=2), "best_of"),
        (ask(audio={"voice": "x"}), "audio"),
        (ask(modalities=["audio"]), "modalities"),
        (ask(functions=[{"name": "f"}]), "use 'tools'"),
        (ask(tools=[{"type": "web_search"}]), "tools"),
        (ask(tools=[{"type": "function", "function": {"name": "a b"}}]), "name"),
        (ask(tools=[TOOL, TOOL]), "same name"),
        (ask(tool_choice="required"), "needs 'tools'"),
        (ask(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}), "'g'"),
        (ask(response_format={"type": "yaml"}), "response_format"),
        (ask(response_format={"type": "grammar", "grammar": GBNF}), "'lark' or 'regex'"),
        (ask(seed=2**64), "seed"),
    ],
)
def test_bad_chat_is_refused_by_the_field(
    client: Callable[..., Any], body: dict[str, Any], words: str
) -> None:
    made = client()
    reply = made.post(CHAT, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"
    assert made.engine.calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        (ask(tools=[TOOL], tool_choice={"type": "function", "function": {}}),
         "tool_choice.function.name"),
        (ask(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
         "response_format.json_schema.schema"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
         "messages.0.content.0.text"),
        (ask(stop=["a", 1]), "stop.1"),
        (ask(structured_outputs={"choice": [""]}), "structured_outputs.choice.0"),
        (ask(logit_bias={"x" * 500: "y"}), "logit_bias." + "x" * 64),
        (ask(temperature="1"), "temperature"),
    ],
)  # fmt: skip
def test_param_is_the_path_that_the_client_wrote(
    client: Callable[..., Any], body: dict[str, Any], param: str
) -> None:
    assert client().post(CHAT, json=body).json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "best_of": 2},
        {"prompt": "x", "echo": True, "logprobs": 1},
        {"prompt": ["x"] * 9, "n": 2},
    ],
)
def test_bad_completion_is_refused(client: Callable[..., Any], body: dict[str, Any]) -> None:
    assert client().post("/v1/completions", json=body).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"input": "x", "background": True},
        {"input": "x", "conversation": "c"},
        {"input": "x", "truncation": "auto"},
        {"input": "x", "metadata": {"a": "b" * 513}},
        {"input": "x", "metadata": {"a" * 65: "b"}},
        {"input": "x", "user": "b" * 513},
        {"input": "x", "tools": [{"type": "web_search_preview"}]},
    ],
)
def test_bad_response_is_refused(client: Callable[..., Any], body: dict[str, Any]) -> None:
    assert client().post("/v1/responses", json=body).status_code == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper"),
        (b'{"messages": NaN}', "NaN"),
        (b'{"messages": -Infinity}', "Infinity"),
        (b'{"messages": 1e999}', "larger"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
        (b'{"messages": "\xff"}', "UTF-8"),
    ],
)
def test_bytes_that_are_no_plain_json_are_refused(
    client: Callable[..., Any], body: bytes, words: str
) -> None:
    reply = client().post(CHAT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_whole_surrogate_pair_is_taken(client: Callable[..., Any]) -> None:
    made = client()
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude42"}]}'
    reply = made.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200
    assert made.engine.calls[0].prompt[0]["content"] == "\N{SLIGHTLY SMILING FACE}"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_body_not_said_to_be_json_is_refused(client: Callable[..., Any], kind: str) -> None:
    reply = client().post(CHAT, content=b"{}", headers={"content-type": kind} if kind else {})
    assert reply.status_code == 415
    assert reply.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFullError("33 wait"), 429, "queue_full"),
        (ContextOverflowError("too long"), 400, "context_length_exceeded"),
        (GrammarError("no such"), 400, "invalid_grammar"),
        (TemplateError("roles"), 400, "invalid_messages"),
        (GenerationError("bad"), 400, None),
        (ClosedError("closed"), 503, "shutting_down"),
        (RuntimeError("/home/secret"), 500, "internal_error"),
    ],
)
def test_engine_errors_have_their_status(
    client: Callable[..., Any], error: Exception, status: int, code: str | None
) -> None:
    reply = client(Reply(refusal=error)).post(CHAT, json=ask())
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code
    assert "secret" not in reply.text
    assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize("streams", [False, True])
def test_failure_on_the_way_says_nothing_of_the_inside(
    client: Callable[..., Any], streams: bool
) -> None:
    made = client(Reply((TextDelta("a"),), error=RuntimeError("secret")))
    reply = made.post(CHAT, json=ask(stream=streams))
    assert "internal_error" in reply.text
    assert "secret" not in reply.text
    assert reply.status_code == (200 if streams else 500)
    assert "[DONE]" not in reply.text


def test_other_model_is_not_found(client: Callable[..., Any]) -> None:
    reply = client().post(CHAT, json=ask(model="gpt-9"))
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "tiny" in reply.json()["error"]["message"]


def test_unknown_address_and_method_are_told_in_the_same_shape(client: Callable[..., Any]) -> None:
    made = client()
    assert made.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert made.get(CHAT).status_code == 405
    assert made.get(CHAT).json()["error"]["message"]


def test_contradicting_grammars_are_refused(client: Callable[..., Any]) -> None:
    body = ask(guided_regex="a", guided_json={"type": "object"})
    reply = client(say("a")).post(CHAT, json=body)
    assert reply.status_code == 400
    assert "contradict" in reply.json()["error"]["message"]
