"""Failures -> answers in the shape of OpenAI's errors.

Enters: our errors, those of validation, and whatever else is raised. Leaves: a status and
{"error": {"message", "type", "param", "code"}}. What was not raised on purpose says nothing of the
inside; it is logged instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lfm2_deploy import errors

LOG = logging.getLogger("lfm2_deploy.server")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
# Longer ones would echo what a client sent.
_LONGEST_MESSAGE = 600
_LONGEST_KEY = 64


class ApiError(HTTPException):
    """A failure that a client is told of.

    Args:
        status: of HTTP.
        message: one line: what failed, what was expected.
        param: the field that is to blame, such as "messages.0.content".
        code: one word that programs can tell it by.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message = _shorten(message)
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that a client gets."""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def respond(self) -> Response:
        """The reply."""
        return JSONResponse(self.body, self.status_code, headers=dict(self.headers or {}))


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request is to blame."""
    return ApiError(400, message, param=param, code=code)


def make_api_error(error: BaseException) -> ApiError:
    """What a client is told of any failure; what was not foreseen is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, errors.QueueFullError):
        wait = {"Retry-After": "1"}
        return ApiError(429, str(error), code="queue_full", headers=wait)
    if isinstance(error, errors.ClosedError):
        return shutting_down()
    if isinstance(error, errors.ContextOverflowError):
        return refuse(str(error), "messages", "context_length_exceeded")
    if isinstance(error, errors.GrammarError):
        return refuse(str(error), "response_format", "invalid_grammar")
    if isinstance(error, errors.TemplateError):
        return refuse(str(error), "messages", "invalid_messages")
    if isinstance(error, errors.GenerationError):
        return refuse(str(error))
    if isinstance(error, HTTPException):
        return ApiError(
            error.status_code, _describe_status(error), code=None, headers=error.headers
        )
    known = isinstance(error, errors.Lfm2DeployError)  # then its line says all there is to say
    trace = None if known else error
    LOG.error("a request failed: %s: %s", type(error).__name__, error, exc_info=trace)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def shutting_down() -> ApiError:
    """The server ends, and takes or finishes no more."""
    # Clients that try again by themselves find the next server, or none.
    wait = {"Retry-After": "2"}
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=wait)


def timed_out(seconds: float) -> ApiError:
    """An answer took too long."""
    # OpenAI's clients repeat a 408 unless they are told not to, which would take as long again.
    told = {"x-should-retry": "false"}
    message = f"the answer took longer than {seconds:g} s: ask for fewer tokens"
    return ApiError(408, message, code="timeout", headers=told)


def add_handlers(app: FastAPI) -> None:
    """Have an app answer every failure in this shape."""
    app.add_exception_handler(HTTPException, _handle)
    app.add_exception_handler(RequestValidationError, _handle_missing)
    app.add_exception_handler(errors.Lfm2DeployError, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    return make_api_error(error).respond()


async def _handle_missing(request: Request, error: Exception) -> Response:
    """Bodies are checked by `json_body`; what FastAPI itself finds is that there is none."""
    return refuse("the body is missing: send JSON", code="invalid_json").respond()


def explain_invalid(found: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The 400 for what pydantic found: the first fault, by the field's path.

    Args:
        found: every fault.
        body: what it was found in.
    """
    # Of a union every member complains; the deepest fault is of the member that was meant, and
    # `max` takes the first of those that are equally deep.
    first = max(found, key=lambda fault: len(fault["loc"]))
    is_missing = first["type"] == "missing"
    param = _find_path(first["loc"], body, is_missing) or None
    said = "this field is missing" if is_missing else str(first["msg"])
    said = said.removeprefix("Value error, ")
    return refuse(f"{param or 'the request'}: {said}", param, "invalid_value")


def _find_path(place: Sequence[str | int], body: Any, is_missing: bool) -> str:
    """Where in a body a fault is: keys and indices that the client knows.

    pydantic names members of unions in between, by types or tags, which the body does not have.
    """
    path, value = [], body
    for index, part in enumerate(place):
        is_there = part in value if isinstance(value, Mapping) else isinstance(part, int)
        if is_there and isinstance(value, Mapping | list):
            value = value[part]  # type: ignore[index]
        elif not (is_missing and index == len(place) - 1):
            continue
        path.append(str(part)[:_LONGEST_KEY])
    return ".".join(path)


def _describe_status(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is nothing at this address: see /openapi.json"
    if error.status_code == 405:
        return "this address takes another method: see /openapi.json"
    return str(error.detail)


def _shorten(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 4] + " ..."
