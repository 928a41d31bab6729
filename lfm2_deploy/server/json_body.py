"""A request's bytes -> JSON values that nothing further in can trip over.

Refused with a 400: what is no UTF-8 or no JSON, NaN and infinities, numbers of absurd length,
halves of surrogate pairs, and nesting deeper than any honest request has. With a 415: what does
not say that it is JSON, which also keeps out forms that other web pages send unasked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from lfm2_deploy.server.errors import ApiError, refuse

_DEEPEST = 64
_LONGEST_NUMBER = 400


class StrictRoute(APIRoute):
    """A route whose body is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None:
                _require_json(request)
            return await inner(_StrictRequest(request.scope, request.receive))

        return handle


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_json(await self.body())


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
