"""/v1/responses: create, look up, forget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lfm2_deploy.server.chat_answer import new_id, now
from lfm2_deploy.server.hub import Feed
from lfm2_deploy.server.json_body import StrictRoute
from lfm2_deploy.server.reading import read_response
from lfm2_deploy.server.response_answer import ResponseWriter
from lfm2_deploy.server.response_items import make_message, read_items
from lfm2_deploy.server.response_store import ResponseStore
from lfm2_deploy.server.routes.common import (
    GET_FAILURES,
    describe_reply,
    find_hub,
    leave_remark,
    wait_unless_gone,
)
from lfm2_deploy.server.schemas import responses as schema
from lfm2_deploy.server.schemas.common import JsonObject, Schema
from lfm2_deploy.server.security import OWNER
from lfm2_deploy.server.sse import EventStream, Piece

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/responses",
    response_model=None,
    responses=describe_reply(schema.Response, "The answer; with `stream`, as named events."),
)
async def create_response(body: schema.ResponseRequest, request: Request) -> Response:
    """Answer an input, or go on from an earlier response."""
    hub, store, owner = find_hub(request), _find_store(request), _find_owner(request)
    facts = hub.require(body.model)
    before: list[JsonObject] = []
    if body.previous_response_id is not None:
        kept = store.find(body.previous_response_id, owner, "previous_response_id")
        before = [dict(message) for message in kept.messages]
    conversation = before + read_items(body.input)
    head = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tells_logprobs = schema.LOGPROBS in (body.include or ()) or body.top_logprobs is not None
    writer = ResponseWriter(
        _begin_response(body, hub.name),
        facts.tokenizer,
        tells_logprobs=tells_logprobs,
        several_calls=body.parallel_tool_calls is not False,
    )
    asked = read_response(body, head + conversation, tells_logprobs, hub.settings)
    feed = await hub.start(asked)
    keep = partial(store.add, owner=owner) if body.store is not False else _keep_nothing
    pieces = _keep_after(writer, feed, conversation, keep)
    return await _reply(request, body, feed, writer, pieces)


async def _reply(
    request: Request,
    body: schema.ResponseRequest,
    feed: Feed,
    writer: ResponseWriter,
    pieces: AsyncIterator[Piece],
) -> Response:
    def end() -> None:
        feed.cancel()
        leave_remark(request, [writer.answer] if writer.answer else [])

    if body.stream:
        return EventStream(pieces, end, says_done=False, explain=writer.explain)
    try:
        await wait_unless_gone(request, _exhaust(pieces))
    finally:
        end()
    return JSONResponse(writer.response)


async def _exhaust(pieces: AsyncIterator[Piece]) -> None:
    async for _ in pieces:
        pass


async def _keep_after(
    writer: ResponseWriter,
    feed: Feed,
    conversation: list[JsonObject],
    keep: Callable[[JsonObject, list[JsonObject]], None],
) -> AsyncIterator[Piece]:
    """The pieces of a stream; before the last, what it told is kept."""
    async for piece in writer.write(feed):
        is_last = piece[0] in ("response.completed", "response.incomplete")
        if is_last and writer.answer is not None:
            calls = [item for item in writer.response["output"] if item["type"] == "function_call"]
            told = {call["call_id"] for call in calls}
            answer = writer.answer
            message = make_message(answer, [c for c in answer.tool_calls if c.id in told])
            keep(writer.response, [*conversation, message])
        yield piece


def _keep_nothing(response: JsonObject, messages: list[JsonObject]) -> None:
    pass


@router.get(
    "/v1/responses/{response_id}",
    response_model=None,
    responses={200: {"model": schema.Response}, **GET_FAILURES},
)
async def get_response(response_id: str, request: Request) -> Response:
    """A response that is kept."""
    return JSONResponse(_find_store(request).find(response_id, _find_owner(request)).response)


@router.delete(
    "/v1/responses/{response_id}",
    response_model=None,
    responses={200: {"model": schema.Deleted}, **GET_FAILURES},
)
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response."""
    _find_store(request).remove(response_id, _find_owner(request))
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _find_store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses
    return store


def _find_owner(request: Request) -> bytes:
    owner: bytes = request.scope["state"][OWNER]
    return owner


def _begin_response(body: schema.ResponseRequest, name: str) -> dict[str, Any]:
    form = body.text.format if body.text else None
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model or name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
        "tool_choice": _describe_choice(body.tool_choice),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _describe_choice(choice: str | Schema | None) -> str | JsonObject:
    return choice.model_dump() if isinstance(choice, Schema) else choice or "auto"
