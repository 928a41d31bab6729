"""/v1/completions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.answers.events import TextDelta
from lfm2_deploy.sampling import TokenLogprobs

from .fake_engine import Reply, read_demo, say


def test_text_is_gone_on_with(serve: Callable[..., Any]) -> None:
    server = serve(say(" upon", " a time"))
    reply = server.openai.completions.create(model="tiny", prompt="Once", max_tokens=5, echo=True)
    assert reply.choices[0].text == "Once upon a time"
    assert reply.choices[0].finish_reason == "stop"
    assert server.engine.calls[0].prompt == "Once"
    assert server.engine.calls[0].overrides["max_new_tokens"] == 5


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_form_of_prompt_is_taken(
    client: Callable[..., Any], prompt: Any, asked: list[Any]
) -> None:
    made = client(say("x"))
    reply = made.post("/v1/completions", json={"prompt": prompt, "n": 2}).json()
    assert [call.prompt for call in made.engine.calls] == asked
    assert [choice["index"] for choice in reply["choices"]] == list(range(2 * len(asked)))
    assert reply["usage"]["prompt_tokens"] == 12 * len(asked)


def test_streamed_prompts_keep_their_places(client: Callable[..., Any]) -> None:
    made = client(say("A", "B"))
    body = {"prompt": ["1", "2"], "stream": True, "stream_options": {"include_usage": True}}
    lines = made.post("/v1/completions", json={**body, "echo": True}).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line[:7] == "data: {"]
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "1AB", 1: "2AB"}
    assert chunks[-1]["usage"]["total_tokens"] == 28


def test_logprobs_have_offsets(client: Callable[..., Any]) -> None:
    logprobs = tuple(TokenLogprobs(token, -1.0, ((token, -1.0),)) for token in (34, 35))
    text = read_demo()[0].decode((34, 35))
    made = client(Reply((TextDelta(text, logprobs),)))
    reply = made.post("/v1/completions", json={"prompt": "x", "logprobs": 1}).json()
    told = reply["choices"][0]["logprobs"]
    first = made.engine.model.tokenizer.token_text(34)
    assert told["tokens"][0] == first
    assert told["text_offset"] == [0, len(first)]
    assert told["top_logprobs"][0] == {first: -1.0}
