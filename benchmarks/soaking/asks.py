"""What clients ask, drawn from a seed.

Enters: a random generator, and prompts whose answers are known. Leaves: `Ask`s, which say what to
send, how the client behaves, and what must come back. Knows nothing of connections.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from soaking import hostile

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
Manner = Literal["whole", "stream", "leave", "drop", "raw"]

_TEXT = (
    "king ship winter letter garden river horse stone window music bread mountain doctor island "
    "silver morning forest captain sister bridge candle storm village mirror"
)
_WORDS = _TEXT.split()
GREEDY = {"temperature": 0, "repetition_penalty": 1}
TOOL = {
    "type": "function",
    "function": {
        "name": "set_alarm",
        "description": "Sets an alarm.",
        "parameters": {
            "type": "object",
            "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}},
            "required": ["hour"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["ship", "horse"]}, "on": {"type": "boolean"}},
    "required": ["kind", "on"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt that is answered greedily, so always in the same way.

    Args:
        path: CHAT or TEXT.
        body: of the request, with log-probabilities, which tell the tokens.
    """

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Args:
        kind: for the table.
        path: or, where `manner` is "raw", nothing.
        body: bytes to send; None for a GET.
        manner: whole reply; stream; stream that is left after `after` events; whole reply that is
            not waited for, after `after` seconds; or bytes on a bare connection.
        after: see `manner`.
        method: of HTTP.
        headers: in place of the usual ones.
        statuses: that may come, beside 429 and 503; any that is documented when empty.
        known: the prompt, where its answer must be the known one.
        check: raises ValueError where the answers' texts or calls are not as asked for.
        most_tokens: that all answers together may have.
        n: answers.
    """

    kind: str
    path: str
    body: bytes | None = None
    manner: Manner = "whole"
    after: float = 0
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    statuses: frozenset[int] = frozenset()
    known: Known | None = None
    check: Callable[[list[str], list[dict[str, Any]]], None] | None = None
    most_tokens: int = 0
    n: int = 1


def make_known(rng: random.Random, count: int, most_tokens: int = 24) -> list[Known]:
    """Prompts of four sorts: short chats, long ones that begin alike, second turns, plain text."""
    shared = write(rng, 260)
    return [_make_known(rng, place % 4, shared, most_tokens) for place in range(count)]


def _make_known(rng: random.Random, sort: int, shared: str, most_tokens: int) -> Known:
    length = rng.randint(max(4, most_tokens // 4), most_tokens)
    common = {**GREEDY, "max_tokens": length}
    if sort == 3:
        prompt = f"The {write(rng, rng.randint(3, 40))}"
        return Known(TEXT, {**common, "prompt": prompt, "logprobs": 0})
    question = {"role": "user", "content": f"{write(rng, rng.randint(3, 12))}?"}
    messages = {
        0: [question],
        1: [{"role": "system", "content": shared}, question],
        2: [
            {"role": "user", "content": shared[:300]},
            {"role": "assistant", "content": write(rng, 20)},
            question,
        ],
    }[sort]
    return Known(CHAT, {**common, "messages": messages, "logprobs": True})


def write(rng: random.Random, words: int) -> str:
    """A text of so many words."""
    return " ".join(rng.choices(_WORDS, k=words))


def draw(rng: random.Random, known: list[Known]) -> Ask:
    """The next request of a client."""
    makers = (_ask_known, _ask_some, _ask_response, _ask_tool, _ask_schema, _leave)
    more = (_ask_hostile, _send_raw, _look_around)
    weights = (30, 12, 8, 6, 6, 12, 18, 3, 5)
    return rng.choices((*makers, *more), weights)[0](rng, known)


def ask_known(known: Known, *, streams: bool) -> Ask:
    """A request whose answer is known."""
    body = {**known.body, **_streaming(streams)}
    return Ask(
        "known",
        known.path,
        _dump(body),
        "stream" if streams else "whole",
        statuses=frozenset({200}),
        known=known,
        most_tokens=known.body["max_tokens"],
    )


def _ask_known(rng: random.Random, known: list[Known]) -> Ask:
    return ask_known(rng.choice(known), streams=rng.random() < 0.6)


def _ask_some(rng: random.Random, known: list[Known]) -> Ask:
    """Several answers by chance, to a chat or to texts."""
    n, tokens = rng.randint(1, 3), rng.choice((1, 8, 40, 120))
    streams = rng.random() < 0.5
    body: dict[str, Any] = {"n": n, "max_tokens": tokens, "seed": rng.randrange(99)}
    if rng.random() < 0.5:
        body |= {"messages": [{"role": "user", "content": write(rng, rng.randint(1, 300))}]}
        return _make("some", CHAT, body | _streaming(streams), tokens * n, n)
    body |= {"prompt": [write(rng, 5), write(rng, 9)], "n": 1}
    return _make("some", TEXT, body | _streaming(streams), tokens * 2, 2)


def _ask_response(rng: random.Random, known: list[Known]) -> Ask:
    tokens = rng.randint(1, 30)
    body = {"input": write(rng, rng.randint(1, 60)), "max_output_tokens": tokens}
    if rng.random() < 0.3:
        body["instructions"] = write(rng, 30)
    return _make("response", RESPONSES, body | {"stream": rng.random() < 0.5}, tokens)


def _ask_tool(rng: random.Random, known: list[Known]) -> Ask:
    body = {
        "messages": [{"role": "user", "content": f"Wake me. {write(rng, 4)}"}],
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 80,
    }
    return _make("tool", CHAT, body | _streaming(rng.random() < 0.5), 80, check=check_tool)


def check_tool(texts: list[str], calls: list[dict[str, Any]]) -> None:
    """The call that was wanted, and one that its schema allows."""
    for call in calls:
        if call["name"] != "set_alarm" or not 0 <= json.loads(call["arguments"])["hour"] <= 23:
            raise ValueError(f"the call is {call}")
    if not calls:
        raise ValueError(f"no call, but {texts}")


def _ask_schema(rng: random.Random, known: list[Known]) -> Ask:
    body = {
        "messages": [{"role": "user", "content": write(rng, 6)}],
        "response_format": FORM,
        "max_tokens": 120,
    }
    return _make("schema", CHAT, body | _streaming(rng.random() < 0.5), 120, check=check_schema)


def check_schema(texts: list[str], calls: list[dict[str, Any]]) -> None:
    """JSON of `SCHEMA`."""
    for text in texts:
        found = json.loads(text)
        if found.keys() != {"kind", "on"} or found["kind"] not in ("ship", "horse"):
            raise ValueError(f"the answer is {text[:200]}")


def _leave(rng: random.Random, known: list[Known]) -> Ask:
    """A client that goes away: in the middle of a stream, or before a whole reply."""
    path = rng.choice((CHAT, TEXT, RESPONSES))
    said = {"messages": [{"role": "user", "content": write(rng, 5)}]}
    body = {CHAT: said, TEXT: {"prompt": "The"}, RESPONSES: {"input": "The"}}[path]
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    body |= {limit: 400, "ignore_eos": True}
    if rng.random() < 0.7:
        content = _dump(body | {"stream": True})
        after = rng.choice((0, 1, 3, 10, 40))
        return Ask("leave", path, content, "leave", after, most_tokens=400)
    return Ask("leave", path, _dump(body), "drop", rng.choice((0.02, 0.2, 1)), most_tokens=400)


def _ask_hostile(rng: random.Random, known: list[Known]) -> Ask:
    path, content, headers = rng.choice(hostile.BODIES)(rng)
    tokens = 16 * 16
    return Ask("hostile", path, content, "whole", headers=headers, most_tokens=tokens)


def _send_raw(rng: random.Random, known: list[Known]) -> Ask:
    content, reaches = rng.choice(hostile.RAW)
    return Ask("raw", "", content, "raw", rng.choice((0.1, 1, 4)), n=int(reaches))


def _look_around(rng: random.Random, known: list[Known]) -> Ask:
    method, path, status = rng.choice(
        (
            ("GET", "/health", 200),
            ("GET", "/metrics", 200),
            ("GET", "/v1/models", 200),
            ("GET", "/v1/engine", 200),
            ("GET", "/openapi.json", 200),
            ("GET", "/nothing", 404),
            ("GET", "/v1/responses/none", 404),
            ("DELETE", "/v1/chat/completions", 405),
        )
    )
    return Ask("look", path, None, method=method, statuses=frozenset({status}))


def _make(
    kind: str,
    path: str,
    body: Mapping[str, Any],
    most_tokens: int,
    n: int = 1,
    check: Callable[[list[str], list[dict[str, Any]]], None] | None = None,
) -> Ask:
    manner: Manner = "stream" if body.get("stream") else "whole"
    statuses = frozenset({200})
    content = _dump(body)
    return Ask(
        kind, path, content, manner, statuses=statuses, check=check, most_tokens=most_tokens, n=n
    )


def _streaming(streams: bool) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if streams else {}


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
