"""The server as an ASGI app, for `lfm2-deploy serve` and for programs that embed it.

from lfm2_deploy.serving.engine import Engine
from lfm2_deploy.server.app import make_app

app = make_app(Engine.load("lfm2-350m"))     # uvicorn.run(app), or app.mount("/llm", ...)
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from lfm2_deploy.server.access import Access, choose_log
from lfm2_deploy.server.errors import add_handlers
from lfm2_deploy.server.hub import Hub
from lfm2_deploy.server.limits import BodyLimit
from lfm2_deploy.server.page import add_page
from lfm2_deploy.server.response_store import ResponseStore
from lfm2_deploy.server.routes import chat, completions, responses, status
from lfm2_deploy.server.security import Doors, Preflight, read_origin
from lfm2_deploy.server.settings import Settings
from lfm2_deploy.serving.engine import Engine


def make_app(
    engine: Engine | None, settings: Settings | None = None, *, precision: str = ""
) -> FastAPI:
    """An app that answers for an engine.

    Args:
        engine: the loaded model; it stays the caller's to close. None where it comes later, by
            `app.state.hub.open(engine)`; requests are told to wait until then.
        settings: limits, keys, names; the defaults when None.
        precision: how the weights are stored, to be told.

    Raises:
        Lfm2DeployError: a setting is not what it has to be.
    """
    settings = settings or Settings()
    hub = Hub(settings)
    if engine is not None:
        hub.open(engine, precision)
    app = FastAPI(
        title="lfm2-deploy",
        description="OpenAI-compatible endpoints over one LFM2 model.",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.hub = hub
    app.state.responses = ResponseStore(settings.kept_responses)
    for routes in (status, chat, completions, responses):
        app.include_router(routes.router)
    if settings.serves_page:
        add_page(app)
    add_handlers(app)
    _describe_failures(app)
    _add_middleware(app, settings, hub)
    return app


def _describe_failures(app: FastAPI) -> None:
    """Keep FastAPI's own shape of a failed validation out of the description: it never comes."""
    describe = app.openapi

    def describe_ours() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = describe()
            for methods in described["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(name, None)
        return describe()

    app.openapi = describe_ours  # type: ignore[method-assign]


def _add_middleware(app: FastAPI, settings: Settings, hub: Hub) -> None:
    """From the inside to the outside."""
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Doors, settings=settings)
    if settings.origins:
        app.add_middleware(
            Preflight,
            allow_origins=[read_origin(origin) for origin in settings.origins],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    app.add_middleware(Access, hub=hub, log=choose_log(settings.access_log))
