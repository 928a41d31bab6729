"""Another client than OpenAI's: LangChain, which goes its own ways with tools and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .fake_engine import Reply, call_tool, say

langchain = pytest.importorskip(
    "langchain_openai", reason="not run: langchain-openai is not installed"
)


def weather(city: str) -> str:
    """Weather of a city."""
    return f"rain in {city}"


def make_chat(server: Any) -> Any:
    return langchain.ChatOpenAI(model="tiny", base_url=f"{server.url}/v1", api_key="unused")


def test_bound_tools_are_called_and_answered(serve: Callable[..., Any]) -> None:
    server = serve(Reply(call_tool("weather", '{"city": "Oslo"}')), say("It rains."))
    chat = make_chat(server).bind_tools([weather])
    asked: list[Any] = [("user", "Weather in Oslo?")]
    called = chat.invoke(asked)
    assert called.tool_calls[0]["args"] == {"city": "Oslo"}
    result = {
        "role": "tool",
        "tool_call_id": called.tool_calls[0]["id"],
        "content": weather(**called.tool_calls[0]["args"]),
    }
    assert chat.invoke([*asked, called, result]).content == "It rains."
    assert server.engine.calls[1].prompt[2]["content"] == "rain in Oslo"


def test_stream_joins_and_tells_usage(serve: Callable[..., Any]) -> None:
    chunks = list(make_chat(serve(say("a", "b"))).stream("Hi", stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == "ab"
    assert whole.usage_metadata["total_tokens"] == 14


def test_structured_output_is_parsed(serve: Callable[..., Any]) -> None:
    schema = {
        "title": "person",
        "description": "A person.",
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    server = serve(say('{"name": "Ada"}'))
    chat = make_chat(server).with_structured_output(schema, method="json_schema")
    assert chat.invoke("Who?") == {"name": "Ada"}
    assert server.engine.calls[0].overrides["grammar"].kind == "json_schema"
