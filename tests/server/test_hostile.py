"""Requests that were made to hurt: each of these once hung, or broke, what it met."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.server import json_body
from lfm2_deploy.serving.engine import Engine
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, hash_logits

from .fake_engine import VOCAB, read_demo

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASK = [{"role": "user", "content": "Hi"}]
JSON = {"content-type": "application/json"}
CONTEXT = 512


@pytest.fixture
def engine() -> Iterator[Engine]:
    """The real engine, over a model without one."""
    runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB, context_length=CONTEXT)
    with Engine(LanguageModel(runtime, *read_demo())) as engine:
        yield engine


def many(item: str, count: int = 20_000) -> str:
    return "[" + ",".join([item] * count) + "]"


def keys(value: str, count: int = 20_000) -> str:
    return "{" + ",".join(f'"{i}":{value}' for i in range(count)) + "}"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, f'{{"messages": {many("1")}}}', "messages.0"),
        (CHAT, f'{{"messages": [{{"role": "user", "content": {many("1")}}}]}}', "messages.0."),
        (CHAT, f'{{"messages": {json.dumps(ASK)}, "tools": {many("1")}}}', "tools.0"),
        (CHAT, f'{{"messages": {json.dumps(ASK)}, "logit_bias": {keys("0")}}}', "logit_bias"),
        (TEXT, f'{{"prompt": {many("1.5")}}}', "prompt.0"),
        (TEXT, f'{{"prompt": [{many("-1")}]}}', "prompt.0.0"),
        (TEXT, f'{{"prompt": "x", "stop": {many("1")}}}', "stop.0"),
        (RESPONSES, f'{{"input": {many("1")}}}', "input.0"),
        (RESPONSES, f'{{"input": "x", "include": {many("1")}}}', "include.0"),
        (RESPONSES, f'{{"input": "x", "metadata": {keys("1")}}}', "metadata"),
    ],
)
def test_body_with_a_fault_in_every_place_costs_no_more_than_one(
    client: Callable[..., Any], path: str, body: str, param: str
) -> None:
    began = time.monotonic()
    reply = client().post(path, content=body, headers=JSON)
    # 0.05 s on a quiet computer; to compare every fault with every other took 50 s.
    assert time.monotonic() - began < 5
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {"prompt": "a" * 1_000_000}),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 1_000_000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "<|im_end|>" * 100_000}]}),
    ],
)
def test_text_far_too_long_is_refused_before_all_of_it_is_encoded(
    client: Callable[..., Any],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    encoded: list[int] = []
    encode = Tokenizer.encode

    def count(self: Tokenizer, text: str, **options: Any) -> list[int]:
        encoded.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", count)
    reply = client(engine=engine).post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert sum(encoded) < 100_000


@pytest.mark.parametrize("name", ["prompt", "self", "messages_", "x y", "", "environment"])
def test_variable_of_a_template_may_have_any_name(
    client: Callable[..., Any], engine: Engine, name: str
) -> None:
    body = {"messages": ASK, "max_tokens": 2, "chat_template_kwargs": {name: 1}}
    assert client(engine=engine).post(CHAT, json=body).status_code == 200


def test_more_messages_than_any_context_holds_are_refused_unread(
    client: Callable[..., Any],
) -> None:
    reply = client().post(CHAT, json={"messages": ASK * 10_001})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "messages"


def test_large_body_is_read_in_another_thread(
    client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[int, int] = {}
    read = json_body.parse_json

    def note(body: bytes) -> Any:
        threads[len(body)] = threading.get_ident()
        return read(body)

    monkeypatch.setattr(json_body, "parse_json", note)
    asker = client()
    bodies = [json.dumps({"messages": ASK, "x": "x" * size}) for size in (10, 100_000)]
    with asker:  # one event loop for both
        for body in bodies:
            assert asker.post(CHAT, content=body, headers=JSON).status_code == 200
    small, large = (threads[len(body)] for body in bodies)
    assert small != large
