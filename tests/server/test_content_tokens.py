"""Tokens that are told of an answer are its text, joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lfm2_deploy.answers.events import ReasoningDelta, TextDelta
from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.server.content_tokens import ContentTokens
from lfm2_deploy.tokenizer import Tokenizer

from .fake_engine import Reply, call_tool, read_demo

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return read_demo()[0]


def entries(tokenizer: Tokenizer, text: str) -> tuple[TokenLogprobs, ...]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tuple(TokenLogprobs(token, -1.0, ()) for token in ids)


def join(tokenizer: Tokenizer, found: list[TokenLogprobs]) -> str:
    return b"".join(tokenizer.token_bytes(entry.token_id) for entry in found).decode()


@pytest.mark.parametrize("end", ["<|im_end|>", "STOP", "STOP<|im_end|>"])
def test_end_of_a_turn_and_stop_strings_are_left_out(tokenizer: Tokenizer, end: str) -> None:
    tokens = ContentTokens(tokenizer)
    text = "The king of naïve 漢字, 🙂."
    found = tokens.push(text, entries(tokenizer, text))
    assert tokens.push("", entries(tokenizer, end)) == []
    assert join(tokenizer, found) == text


def test_tokens_whose_text_is_held_back_come_with_it(tokenizer: Tokenizer) -> None:
    tokens = ContentTokens(tokenizer)
    first, second = entries(tokenizer, "The king"), entries(tokenizer, " went home")
    # All tokens are told with the first piece, whose end might begin a stop string.
    assert tokens.push("The k", (*first, *second)) == [*first]
    assert tokens.push("ing went", ()) == [*second[:1]]
    assert tokens.push(" home", ()) == [*second[1:]]


def test_marks_and_calls_before_a_text_are_passed_over(tokenizer: Tokenizer) -> None:
    tokens = ContentTokens(tokenizer)
    before = entries(tokenizer, "</think>\n[f(a=1)]")
    text = entries(tokenizer, "Rain.")
    assert tokens.push("Rain.", (*before, *text)) == [*text]


def test_blanks_that_a_text_lost_do_not_matter(tokenizer: Tokenizer) -> None:
    told = entries(tokenizer, " Rain fell")
    assert ContentTokens(tokenizer).push("Rain fell", told) == [*told]


def test_piece_that_no_token_explains_does_not_lose_the_next(tokenizer: Tokenizer) -> None:
    tokens = ContentTokens(tokenizer)
    assert tokens.push("Rain", entries(tokenizer, "Snow")) == []
    told = entries(tokenizer, " fell")
    assert tokens.push(" fell", told) == [*told]


def test_bytes_that_are_no_character_have_tokens(tokenizer: Tokenizer) -> None:
    broken = entries(tokenizer, "🙂")[:1]
    after = entries(tokenizer, "Yes")
    assert tokenizer.decode([broken[0].token_id]) == "\N{REPLACEMENT CHARACTER}"
    tokens = ContentTokens(tokenizer)
    assert tokens.push("\N{REPLACEMENT CHARACTER}Yes", (*broken, *after)) == [*broken, *after]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_told_tokens_are_the_text(
    client: Callable[..., Any], tokenizer: Tokenizer, path: str
) -> None:
    end = entries(tokenizer, "STOP<|im_end|>")
    thought = ReasoningDelta("Hm.", entries(tokenizer, "<think>Hm."))
    text = TextDelta("Rain.", (*entries(tokenizer, "</think>\n"), *entries(tokenizer, "Rain.")))
    parts = (text, *call_tool("f", "{}"), TextDelta("", end))
    if path != "/v1/completions":
        parts = (thought, *parts)
    body = {
        CHAT: ASK,
        "/v1/completions": {"prompt": "x", "logprobs": 1},
        "/v1/responses": {"input": "x", "top_logprobs": 0},
    }[path]
    made = client(Reply(parts))
    reply = made.post(path, json=body).json()
    if path == CHAT:
        told = [entry["token"] for entry in reply["choices"][0]["logprobs"]["content"]]
    elif path == "/v1/completions":
        told = reply["choices"][0]["logprobs"]["tokens"]
    else:
        told = [entry["token"] for entry in reply["output"][1]["content"][0]["logprobs"]]
    assert "".join(told) == "Rain."
    assert "STOP" not in made.post(path, json={**body, "stream": True}).text
