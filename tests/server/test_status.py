"""Models, health, metrics, the engine, the log, the description."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.server.log_lines import LINES
from lfm2_deploy.server.schemas.chat import ChatCompletion
from lfm2_deploy.server.schemas.completions import Completion
from lfm2_deploy.server.schemas.responses import Response

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "a secret"}]}


def test_models_are_listed_by_every_name(serve: Callable[..., Any]) -> None:
    models = serve().openai.models
    assert [model.id for model in models.list()] == ["tiny"]
    assert models.retrieve("tiny").owned_by == "lfm2-deploy"


def test_model_of_a_hub_id_is_found(client: Callable[..., Any]) -> None:
    assert client().get("/v1/models/alias").json()["id"] == "alias"
    assert client().get("/v1/models/other/name").status_code == 404


def test_health_tells_device_and_load(client: Callable[..., Any]) -> None:
    told = client().get("/health").json()
    assert told == {
        "status": "ready",
        "model": "tiny",
        "device": "nowhere",
        "running": 0,
        "waiting": 0,
    }


def test_health_tells_that_the_engine_is_broken(client: Callable[..., Any]) -> None:
    made = client()
    made.engine.failure = "MemoryError: /secret"
    reply = made.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "failed")
    assert made.get("/v1/engine").json()["state"]["failed"] is True
    assert "secret" not in made.get("/v1/engine").text + reply.text
    made.engine.failure = ""
    assert made.get("/health").json()["status"] == "ready"


def test_engine_tells_what_the_page_needs(client: Callable[..., Any]) -> None:
    told = client().get("/v1/engine").json()
    assert told["context_length"] == 64
    assert told["runtime"] == "fake"
    assert told["has_chat_template"] is True
    assert told["state"]["completion_tokens"] == 20


def test_metrics_count_requests_and_tokens(client: Callable[..., Any]) -> None:
    made = client()
    made.post(CHAT, json=BODY)
    made.post(CHAT, json={})
    made.get("/made/up/by/a/client")
    text = made.get("/metrics").text
    assert f'lfm2_requests_total{{code="200",endpoint="{CHAT}"}} 1.0' in text
    assert f'lfm2_requests_total{{code="400",endpoint="{CHAT}"}} 1.0' in text
    assert "made/up" not in text
    assert "lfm2_prompt_tokens_reused_total 4.0" in text
    assert "lfm2_time_to_first_token_seconds_count 1.0" in text
    assert 'lfm2_answers_total{finish_reason="stop"} 2.0' in text


def test_two_servers_count_for_themselves(client: Callable[..., Any]) -> None:
    first, second = client(), client()
    first.post(CHAT, json=BODY)
    assert CHAT not in second.get("/metrics").text


@pytest.mark.parametrize("style", ["text", "json", "off"])
def test_log_has_no_contents_and_no_control_characters(
    client: Callable[..., Any], capfd: pytest.CaptureFixture[str], style: str
) -> None:
    made = client(access_log=style)
    made.post(CHAT, json=BODY)
    made.get("/%1b%5b31m%0a")
    LINES.flush(10)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == {"text": 2, "json": 2, "off": 0}[style]
    assert not any("secret" in line or "\x1b" in line for line in lines)
    if style == "text":
        assert lines[0].startswith(f"POST {CHAT} 200 ")
        assert lines[0].endswith("12+2 tokens")
    if style == "json":
        assert json.loads(lines[0])["status"] == 200


def test_replies_are_what_the_description_says(client: Callable[..., Any]) -> None:
    made = client()
    for path, body, model in (
        (CHAT, BODY, ChatCompletion),
        ("/v1/completions", {"prompt": "x", "logprobs": 1}, Completion),
        ("/v1/responses", {"input": "x"}, Response),
    ):
        model.model_validate(made.post(path, json=body).json())
    described = made.get("/openapi.json").json()
    reply = described["paths"][CHAT]["post"]["responses"]
    assert {"200", "400", "401", "429", "503"} <= reply.keys()
    assert {"application/json", "text/event-stream"} == reply["200"]["content"].keys()
    assert "422" not in reply
    assert made.get("/docs").status_code == 404
