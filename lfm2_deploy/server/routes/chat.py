"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.server.chat_answer import Frame, collect_chat, new_id, now, stream_chat
from lfm2_deploy.server.hub import Feed, Hub
from lfm2_deploy.server.json_body import StrictRoute
from lfm2_deploy.server.reading import read_chat
from lfm2_deploy.server.routes.common import (
    describe_reply,
    find_hub,
    leave_remark,
    wait_unless_gone,
)
from lfm2_deploy.server.schemas.chat import ChatCompletion, ChatRequest
from lfm2_deploy.server.sse import EventStream

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses=describe_reply(ChatCompletion, "The answers; with `stream`, in chunks."),
)
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    hub = find_hub(request)
    facts = hub.require(body.model)
    frame = Frame(
        new_id("chatcmpl-"),
        body.model or hub.name,
        now(),
        facts.tokenizer,
        logprobs=bool(body.logprobs),
        several_calls=body.parallel_tool_calls is not False,
        includes_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    feed = await hub.start(read_chat(body, hub.settings))
    if body.stream:
        return _stream(request, hub, feed, frame, body.n or 1)
    try:
        reply, answers = await wait_unless_gone(request, collect_chat(feed, frame))
    finally:
        feed.cancel()
    leave_remark(request, answers)
    return JSONResponse(reply)


def _stream(request: Request, hub: Hub, feed: Feed, frame: Frame, n: int) -> Response:
    answers: list[Answer] = []

    def end() -> None:
        feed.cancel()
        leave_remark(request, answers)

    return EventStream(stream_chat(feed, frame, n, answers), end)
