"""A request's bytes -> a checked value of its model, which nothing further in can trip over.

Refused with a 400: what is no UTF-8 or no JSON, NaN and infinities, numbers of absurd length,
halves of surrogate pairs, and nesting deeper than any honest request has. With a 415: what does
not say that it is JSON, which also keeps out forms that other web pages send unasked. Large
bodies are read in another thread, so that answers go on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope

from lfm2_deploy.server.errors import ApiError, explain_invalid, refuse

# Read in a few milliseconds at most.
_LARGE_BYTES = 32_768
_DEEPEST = 64
_LONGEST_NUMBER = 400


class StrictRoute(APIRoute):
    """A route whose body is read by `read_body`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        inner = super().get_route_handler()
        model = None if self.body_field is None else self.body_field.field_info.annotation

        async def handle(request: Request) -> Response:
            if model is None:
                return await inner(request)
            _require_json(request)
            assert isinstance(model, type)
            assert issubclass(model, BaseModel)
            return await inner(_StrictRequest(request.scope, request.receive, model))

        return handle


class _StrictRequest(Request):
    def __init__(self, scope: Scope, receive: Receive, model: type[BaseModel]) -> None:
        super().__init__(scope, receive)
        self._model = model

    async def json(self) -> BaseModel:
        """The body; FastAPI takes what is of its model already as it is."""
        body = await self.body()
        if len(body) < _LARGE_BYTES:
            return read_body(body, self._model)
        return await asyncio.to_thread(read_body, body, self._model)


def read_body(body: bytes, model: type[BaseModel]) -> BaseModel:
    """Read a body and check it.

    Raises:
        ApiError: a 400 that says what is wrong.
    """
    value = parse_json(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise explain_invalid(found, value) from error


def parse_json(body: bytes) -> Any:
    """Read a body.

    Raises:
        ApiError: a 400 that says what is wrong.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    except UnicodeDecodeError as error:
        raise refuse("the body is not UTF-8", code="invalid_json") from error
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise refuse(f"the body is not JSON: {error.msg} ({where})", code="invalid_json") from error
    _check_depth(value)
    if b"\\u" in body:  # the only way to write half a pair in UTF-8
        _check_text(value)
    return value


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"the body is {kind[:80] or 'of no declared type'}: send JSON, with the header "
            "Content-Type: application/json",
            code="unsupported_media_type",
        )


def _refuse_constant(name: str) -> NoReturn:
    raise refuse(f"{name} is no JSON number", code="invalid_json")


def _parse_int(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise refuse(f"a number has {len(digits)} digits", code="invalid_json")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise refuse(f"{digits[:40]} is larger than any number", code="invalid_json")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return refuse(f"the body is nested deeper than {_DEEPEST} levels", code="invalid_json")


def _check_text(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise refuse(
            "a text holds half of a surrogate pair: send whole characters", code="invalid_json"
        ) from error
