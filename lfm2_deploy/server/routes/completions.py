"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.server.chat_answer import Frame, new_id, now
from lfm2_deploy.server.json_body import StrictRoute
from lfm2_deploy.server.reading import read_completion
from lfm2_deploy.server.routes.common import (
    cancel_all,
    describe_reply,
    find_hub,
    leave_remark,
    start_all,
    wait_unless_gone,
)
from lfm2_deploy.server.schemas.completions import Completion, CompletionRequest
from lfm2_deploy.server.sse import EventStream
from lfm2_deploy.server.text_answer import collect_texts, stream_texts
from lfm2_deploy.tokenizer import Tokenizer

router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/completions",
    response_model=None,
    responses=describe_reply(Completion, "The answers; with `stream`, in chunks."),
)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on with texts, as they are."""
    hub = find_hub(request)
    facts = hub.require(body.model)
    frame = Frame(
        new_id("cmpl-"),
        body.model or hub.name,
        now(),
        facts.tokenizer,
        logprobs=body.logprobs is not None,
        includes_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    n, echoes = body.n or 1, _list_echoes(body, facts.tokenizer)
    feeds = await start_all(hub, read_completion(body, hub.settings))
    if not body.stream:
        try:
            work = collect_texts(feeds, frame, echoes, n)
            reply, answers = await wait_unless_gone(request, work)
        finally:
            cancel_all(feeds)
        leave_remark(request, answers)
        return JSONResponse(reply)
    ended: list[Answer] = []

    def end() -> None:
        cancel_all(feeds)
        leave_remark(request, ended)

    return EventStream(stream_texts(feeds, frame, echoes, n, ended), end)


def _list_echoes(body: CompletionRequest, tokenizer: Tokenizer) -> list[str]:
    """What the answers to each prompt begin with."""
    if not body.echo:
        return [""] * len(body.prompts)
    return [
        prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in body.prompts
    ]
