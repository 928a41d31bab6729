"""Anything at all, at the doors that anyone can reach: what is refused is refused in words.

Examples are drawn anew from the tests' own names, so that a run is like any other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from lfm2_deploy.answers.messages import prepare_messages
from lfm2_deploy.answers.parser import AnswerParser
from lfm2_deploy.errors import GenerationError, GrammarError, TemplateError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.guidance import compile_grammar
from lfm2_deploy.server.app import make_app
from lfm2_deploy.server.settings import Settings
from lfm2_deploy.serving.engine import Engine
from runtimes.fake import FakeRuntime, hash_logits

from .fake_engine import VOCAB, read_demo

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PATHS = (CHAT, TEXT, RESPONSES)
TOKENS = 4
# Of one request or grammar. The slowest take about half a second on a quiet computer.
MOST_SECONDS = 10.0


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def make_engine() -> Engine:
    runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB, context_length=512)
    return Engine(LanguageModel(runtime, *read_demo()))


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with make_engine() as engine:
        app = make_app(engine, Settings(names=("tiny",), hosts=("*",), max_tokens=TOKENS))
        yield TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def api_schema(http: TestClient) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", http.app)


OPERATIONS = (
    *(("POST", path) for path in PATHS),
    *(("GET", path) for path in ("/v1/models", "/v1/engine", "/health", "/metrics")),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/responses/{response_id}"),
    ("DELETE", "/v1/responses/{response_id}"),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_every_operation_is_tried(api_schema: Any) -> None:
    found = [operation.ok() for operation in api_schema.get_all_operations()]
    assert {(one.method.upper(), one.path) for one in found} == set(OPERATIONS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_replies_are_as_the_description_says(
    api_schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api_schema[path][method]
    if mode is GenerationMode.NEGATIVE and method != "POST":
        return  # there is nothing to send that could be wrong

    @given(case=operation.as_strategy(generation_mode=mode))
    @fuzz(25)
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


# Numbers that no computer's integer or float holds are among them.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**399, 1e308, -0.0, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["", "\0", "<|im_start|>", "<|im_end|>", "\u2028", "text", "user", "tool"])
)
KEYS = st.text(max_size=6) | st.sampled_from(
    ["type", "role", "content", "text", "function", "name", "arguments", "parameters", "schema"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
GOOD = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": TOKENS},
    TEXT: {"prompt": "Hi", "max_tokens": TOKENS},
    RESPONSES: {"input": "Hi", "max_output_tokens": TOKENS},
}


@cache
def list_fields(path: str) -> tuple[str, ...]:
    described = make_app(None).openapi()
    body = described["paths"][path]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return tuple(described["components"]["schemas"][name]["properties"])


def send(http: TestClient, path: str, content: bytes) -> None:
    """Send a body; see that the reply is an answer or a refusal, and comes in time."""
    began = time.monotonic()
    reply = http.post(path, content=content, headers={"content-type": "application/json"})
    assert time.monotonic() - began < MOST_SECONDS
    assert reply.status_code in (200, 400, 404, 413), reply.text
    if reply.status_code != 200:
        assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
        assert "\n" not in reply.json()["error"]["message"]
    elif reply.headers["content-type"].startswith("text/event-stream"):
        # Too late for a status: a fault of the server's is told in the stream.
        assert "internal_error" not in reply.text


@given(path=st.sampled_from(PATHS), content=st.binary(max_size=200))
@fuzz(100)
def test_any_bytes_are_answered_or_refused(http: TestClient, path: str, content: bytes) -> None:
    send(http, path, content)


@given(path=st.sampled_from(PATHS), body=VALUES)
@fuzz(100)
def test_any_json_is_answered_or_refused(http: TestClient, path: str, body: Any) -> None:
    send(http, path, json.dumps(body).encode())


@given(data=st.data(), path=st.sampled_from(PATHS), stream=st.booleans())
@fuzz(400)
def test_any_value_of_a_field_is_answered_or_refused(
    http: TestClient, data: st.DataObject, path: str, stream: bool
) -> None:
    names = data.draw(st.lists(st.sampled_from(list_fields(path)), min_size=1, max_size=2))
    changed = {name: data.draw(VALUES) for name in names}
    send(http, path, json.dumps({**GOOD[path], "stream": stream, **changed}).encode())


@given(text=st.text(st.characters(), max_size=40), path=st.sampled_from(PATHS))
@fuzz(100)
def test_any_text_is_answered_or_refused(http: TestClient, text: str, path: str) -> None:
    """Halves of surrogate pairs, too, which JSON can write."""
    said = {CHAT: {"messages": [{"role": "user", "content": text}]}, TEXT: {"prompt": text}}
    body = {**GOOD[path], **said.get(path, {"input": text})}
    send(http, path, json.dumps(body).encode())


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"messages":[', '[{"a":'])
@pytest.mark.parametrize("path", PATHS)
def test_any_depth_is_refused(http: TestClient, path: str, opening: str) -> None:
    for depth in (65, 1_000, 100_000):
        send(http, path, (opening * depth).encode())
        closing = "".join({"[": "]", "{": "}"}.get(c, "") for c in reversed(opening * depth))
        send(http, path, f"{opening * depth}1{closing}".encode())


KEYWORDS = """
    type properties required additionalProperties items prefixItems minItems maxItems enum const
    pattern format minLength maxLength minimum maximum exclusiveMinimum multipleOf anyOf oneOf allOf
    not $ref $defs if then patternProperties uniqueItems minProperties x-guidance
"""
SCHEMA_KEYS = st.sampled_from(KEYWORDS.split())
SCHEMA_VALUES = st.recursive(
    SCALARS
    | st.sampled_from(
        ["object", "array", "string", "integer", "number", "null", "#", "#/$defs/a", "http://x/y"]
    )
    | st.sampled_from(["date-time", "uuid", "(a+)+$", "(", "[", "a{1,99999}", ".*", "\\d", "^$"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCHEMA_KEYS, inner, max_size=4),
    max_leaves=14,
)


def check_line(error: Exception) -> None:
    assert "\n" not in str(error)


def compile_in_time(make: Callable[[], Grammar]) -> None:
    began = time.monotonic()
    try:
        constraint = compile_grammar(make(), read_demo()[0], [7])
        for _ in range(3):
            allowed = constraint.allowed().nonzero()[0]
            if constraint.is_finished or not len(allowed):
                break
            constraint.accept(int(allowed[-1]))
    except GrammarError as error:
        check_line(error)
    assert time.monotonic() - began < MOST_SECONDS


@given(schema=st.dictionaries(SCHEMA_KEYS, SCHEMA_VALUES, max_size=5))
@fuzz(200)
def test_any_schema_is_compiled_or_refused_in_time(schema: dict[str, Any]) -> None:
    compile_in_time(lambda: Grammar.json_schema(schema))


REGEX = st.text(st.sampled_from("ab01^$.*+?()[]{},|\\-dwsbpP<>=!:é\n/\"'"), max_size=30)
LARK_PARTS = """
    start : a B "x" /[a-z]+/ | ( ) * + ? ~ {1,3} %json {} %regex %ignore [ ] lazy stop = "" \ /
    <|im_end|> <[1]> %llguidance start: A: // & {9999999999,}
"""
LARK = st.lists(
    st.sampled_from([*LARK_PARTS.split(), "\n"]),
    max_size=14,
).map(" ".join)


@given(source=REGEX)
@fuzz(200)
def test_any_regex_is_compiled_or_refused_in_time(source: str) -> None:
    compile_in_time(lambda: Grammar.regex(source))


@given(source=LARK | REGEX.map(lambda regex: f"start: /{regex}/"))
@fuzz(200)
def test_any_lark_is_compiled_or_refused_in_time(source: str) -> None:
    compile_in_time(lambda: Grammar.lark(source))


@given(messages=st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=4))
@fuzz(200)
def test_any_messages_are_laid_out_or_refused(messages: list[Any]) -> None:
    try:
        prepared = prepare_messages(messages)
        model = LanguageModel(FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB), *read_demo())
        ids = model.encode_prompt(prepared)
    except (TemplateError, GenerationError) as error:
        check_line(error)
    else:
        assert all(0 <= token < VOCAB for token in ids)


ANSWER_PARTS = r"""
    <|tool_call_start|> <|tool_call_end|> <think> </think>
    [ ] f( ) a= 1 " ' \ , { } : True None - e9
    \u12 r' {"name":"f","arguments": text é 0x 1_0 b'
"""
ANSWER = st.lists(
    st.sampled_from([*ANSWER_PARTS.split(), ", ", ": ", "\n", "\ud800", "\0"])
    | st.text(max_size=5),
    max_size=24,
)


@given(pieces=ANSWER, reasons=st.booleans(), knows=st.booleans())
@fuzz(400)
def test_any_answer_is_parsed(pieces: list[str], reasons: bool, knows: bool) -> None:
    tools = ({"name": "f", "parameters": {"type": "object"}},) if knows else None
    parser = AnswerParser(tools=tools, starts_in_reasoning=reasons)
    for piece in pieces:
        parser.push(piece)
    parser.flush()
    # Whatever the model wrote, a client can read what it is told of calls.
    assert all(isinstance(json.loads(call.arguments), dict) for call in parser.tool_calls)
