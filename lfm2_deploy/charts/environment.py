"""The jinja2 environment of charts and pages: everything printed is escaped and visible."""

from __future__ import annotations

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
    environment.filters |= {"number": format_number, "share": format_share, "token": show_token}
    return environment


def _finalize(value: Any) -> Any:
    """What a template prints: text is made visible here once, so that no template forgets it."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return make_visible(value, keep="\n\t") if is_text else value
