"""The server over the real engine: the demo model, and a model that follows a script."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lfm2_deploy.api import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.serving.engine import Engine, EngineLimits
from runtimes.fake import FakeRuntime, hash_logits

from .conftest import Running, run_server
from .fake_engine import VOCAB, read_demo

ASK = [{"role": "user", "content": "Who was the king?"}]
PATIENCE = 20.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("served") / "demo"
    return export(str(DEMO_MODEL), place, precision="int4", canary=False)


@pytest.fixture(scope="module")
def demo(bundle: Bundle) -> Iterator[Running]:
    with (
        Engine.load(bundle, threads=1, limits=EngineLimits(running=2)) as engine,
        run_server(engine) as server,
    ):
        yield server


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_seed_gives_the_same_answer_whole_and_streamed(demo: Running) -> None:
    create = demo.openai.chat.completions.create
    wanted: dict[str, Any] = {"model": "tiny", "messages": ASK, "max_tokens": 12, "seed": 3}
    whole = create(**wanted)
    pieces = [chunk.choices[0].delta.content or "" for chunk in create(**wanted, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 12


def test_second_turn_reuses_the_first(demo: Running) -> None:
    create = demo.openai.chat.completions.create
    wanted: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    first = create(messages=ASK, **wanted).choices[0].message.content
    more = [*ASK, {"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    usage = create(messages=more, **wanted).usage
    assert usage.prompt_tokens_details.cached_tokens > 10


def test_logprobs_cover_the_text(demo: Running) -> None:
    reply = demo.openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    told = reply.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in told).decode()
    assert text == reply.choices[0].message.content
    # Greedy, and without a penalty on what is new: mostly the likeliest token is taken.
    assert told[0].token == told[0].top_logprobs[0].token


def test_several_prompts_as_text_and_as_ids_agree(demo: Running, bundle: Bundle) -> None:
    from lfm2_deploy.tokenizer import Tokenizer

    ids = Tokenizer.from_folder(bundle.path).encode("The king", add_special_tokens=True)
    create = demo.openai.completions.create
    wanted: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    texts = create(prompt=["The king", "A ship"], **wanted).choices
    assert create(prompt=ids, **wanted).choices[0].text == texts[0].text
    assert texts[0].text != texts[1].text


def test_client_that_leaves_frees_its_place(demo: Running) -> None:
    body = {"messages": ASK, "stream": True, "ignore_eos": True, "stop_token_ids": []}
    with (
        demo.http as http,
        http.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        lines = reply.iter_lines()
        for _ in range(6):
            next(lines)
        assert demo.engine.state.running == 1
    wait_for(lambda: demo.engine.state.running == 0)
    assert demo.engine.state.answers["cancelled"] >= 1


def test_prompt_longer_than_the_context_is_refused(demo: Running) -> None:
    long = [{"role": "user", "content": "and " * 3000}]
    with pytest.raises(openai.BadRequestError, match="context") as caught:
        demo.openai.chat.completions.create(model="tiny", messages=long)
    assert caught.value.code == "context_length_exceeded"


def test_answer_follows_a_schema(demo: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 10}},
        "required": ["age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    reply = demo.openai.chat.completions.create(
        model="tiny", messages=ASK, response_format=form, max_tokens=40, seed=1
    )
    assert 10 <= json.loads(reply.choices[0].message.content)["age"] <= 99


def test_full_queue_is_told_with_a_time_to_wait() -> None:
    tokenizer, template = read_demo()
    runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB, context_length=4096)
    model = LanguageModel(runtime, tokenizer, template)
    limits = EngineLimits(running=1, waiting=0)
    body = {"prompt": "x", "stream": True, "ignore_eos": True, "temperature": 1}
    with (
        Engine(model, limits) as engine,
        run_server(engine) as server,
        server.http as http,
        http.stream("POST", "/v1/completions", json=body) as reply,
    ):
        lines = reply.iter_lines()  # kept: where it goes, httpx closes the connection
        next(lines)
        wait_for(lambda: engine.state.running == 1)
        refused = httpx.post(f"{server.url}/v1/completions", json=body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
    assert engine.state.running == 0


def test_unloaded_model_comes_back_with_a_request(bundle: Bundle) -> None:
    limits = EngineLimits(idle_seconds=0.2)
    with Engine.load(bundle, threads=1, limits=limits) as engine, run_server(engine) as server:
        wait_for(lambda: not engine.state.loaded)
        with server.http as http:
            assert http.get("/health").status_code == 200
            assert http.get("/v1/engine").json()["state"]["loaded"] is False
            reply = http.post("/v1/completions", json={"prompt": "The", "max_tokens": 2})
        assert reply.status_code == 200
        assert engine.state.completion_tokens == 2


def test_program_may_mount_the_app_into_its_own(bundle: Bundle, tmp_path: Path) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from lfm2_deploy.server.app import make_app
    from lfm2_deploy.server.settings import Settings

    with Engine.load(bundle, threads=1) as engine:
        outer = FastAPI()
        outer.mount("/llm", make_app(engine, Settings(names=("tiny",), api_keys=("k",))))
        client = TestClient(outer, base_url="http://127.0.0.1")
        assert client.get("/llm/v1/models").status_code == 401
        found = client.get("/llm/v1/models", headers={"authorization": "Bearer k"})
        assert found.json()["data"][0]["id"] == "tiny"
