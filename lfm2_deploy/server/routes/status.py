"""What the server tells of itself: models, health, metrics, the engine."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lfm2_deploy.server.hub import Hub
from lfm2_deploy.server.metrics import CONTENT_TYPE
from lfm2_deploy.server.routes.common import GET_FAILURES, find_hub
from lfm2_deploy.server.schemas.common import JsonObject, ModelCard, ModelList, Schema

router = APIRouter()


class Health(Schema):
    """How far the server is."""

    status: Literal["ready", "loading", "draining", "failed"]
    model: str
    device: str | None
    running: int
    waiting: int


class EngineInfo(Schema):
    """What runs, where, and what it can do."""

    model: str
    aliases: list[str]
    device: str
    runtime: str
    driver: str
    arithmetic: str
    context_length: int
    max_tokens: int | None
    precision: str
    notes: list[str]
    has_chat_template: bool
    supports_tools: bool
    supports_reasoning: bool
    capabilities: JsonObject
    defaults: JsonObject
    state: JsonObject


@router.get("/v1/models", responses={200: {"model": ModelList}, **GET_FAILURES})
async def list_models(request: Request) -> Response:
    """The model, by each of its names."""
    hub = find_hub(request)
    return JSONResponse(
        {"object": "list", "data": [_describe(hub, name) for name in hub.settings.names]}
    )


# A Hub id has a slash in it.
@router.get("/v1/models/{model:path}", responses={200: {"model": ModelCard}, **GET_FAILURES})
async def get_model(model: str, request: Request) -> Response:
    """The model of that name."""
    hub = find_hub(request)
    hub.check_name(model)
    return JSONResponse(_describe(hub, model))


@router.get(
    "/health",
    responses={200: {"model": Health}, 503: {"model": Health}, 403: GET_FAILURES[403]},
)
async def health(request: Request) -> Response:
    """Whether answers can be expected: 200 when ready, 503 otherwise."""
    hub = find_hub(request)
    state = hub.state
    told = {
        "status": hub.health,
        "model": hub.name,
        "device": None if state is None else hub.facts.device,
        "running": state.running if state else 0,
        "waiting": state.waiting if state else 0,
    }
    status = 200 if told["status"] == "ready" else 503
    return JSONResponse(told, status, headers={"Cache-Control": "no-store"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        401: GET_FAILURES[401],
        403: GET_FAILURES[403],
    },
)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(find_hub(request).metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/engine", responses={200: {"model": EngineInfo}, **GET_FAILURES})
async def engine_info(request: Request) -> Response:
    """The model, its device, and what it can do."""
    hub = find_hub(request)
    state: dict[str, Any] = {}
    facts = hub.facts
    if hub.state is not None:
        names = hub.state.__slots__
        state = {name: getattr(hub.state, name) for name in names}
        state["answers"] = dict(state["answers"])
        # What broke is the log's to tell.
        state["failed"] = bool(state.pop("failure"))
    return JSONResponse(
        {
            "model": hub.name,
            "aliases": list(hub.settings.names[1:]),
            "max_tokens": hub.settings.max_tokens,
            **facts.to_json(),
            "state": state,
        }
    )


def _describe(hub: Hub, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": hub.created, "owned_by": "lfm2-deploy"}
