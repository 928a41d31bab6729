"""The jinja2 environment of charts and pages: everything printed is escaped and visible."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from lfm2_deploy.charts.numbers import format_number, format_share
from lfm2_deploy.charts.text import make_visible, show_token


@cache
def find_environment(package: str) -> jinja2.Environment:
    """The templates in a package's folder `templates`, and those of charts.

    Args:
        package: its import name.
    """
    packages = dict.fromkeys((package, "lfm2_deploy.charts"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= _FILTERS
    return environment


def format_count(count: int, thing: str) -> str:
    """(1, "window") -> "1 window", (16320, "position") -> "16,320 positions"."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def format_percent(place: float) -> str:
    """0 to 1 -> a length of CSS or SVG."""
    return f"{round(100 * place, 2):g}%"


def _keep_ending(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"…{text[-most:]}"


def _keep_beginning(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


_FILTERS: dict[str, Callable[..., str]] = {
    "beginning": _keep_beginning,
    "count_of": format_count,
    "ending": _keep_ending,
    "number": format_number,
    "percent": format_percent,
    "share": format_share,
    "token": show_token,
    "visible": make_visible,
}


def _finalize(value: Any) -> Any:
    """What a template prints: text is made visible here once, so that no template forgets it."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return make_visible(value, keep="\n\t") if is_text else value
