"""A `Report` -> one HTML file. No network, no script that reading needs, all text escaped.

The page is made by jinja2 templates; `lfm2_deploy.charts` makes every printed text visible and
the templates escape it. A content security policy forbids the page to load anything, and
allows the one script in it by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from markupsafe import Markup

from lfm2_deploy.charts import render_chart
from lfm2_deploy.charts.environment import find_environment
from lfm2_deploy.charts.svg import COLOURS
from lfm2_deploy.compare.report import bars, plots, sentences, state_plots, table, values
from lfm2_deploy.compare.result import Report
from lfm2_deploy.compare.result_json import describe

_PACKAGE = "lfm2_deploy.compare.report"
# Worst positions of a subject that are in sight; the others unfold.
_SHOWN = 3
# What could end the element that holds JSON, or begin a comment in it.
_UNSAFE_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_page(report: Report, file: Path) -> None:
    """Write a comparison as an HTML page.

    Args:
        report: what was measured.
        file: where to; an existing file is replaced once the new one is whole.

    Raises:
        OSError: it cannot be written.
    """
    page = render_page(report).encode("utf-8")
    scratch = file.with_name(f".{file.name}.partial")
    try:
        scratch.write_bytes(page)
        os.replace(scratch, file)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(file)) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def render_page(report: Report) -> str:
    """The HTML of a comparison, encodable as UTF-8 whatever its texts hold."""
    environment = find_environment(_PACKAGE)
    source, _, _ = environment.loader.get_source(environment, "page.js")  # type: ignore[union-attr]
    # Browsers hash what they read, and read every end of a line as one character.
    script = source.strip().replace("\r\n", "\n")
    return environment.get_template("page.html.jinja").render(
        report=report,
        headline=sentences.write_headline(report),
        verdict=sentences.judge(report),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(_embed(report)),
        figures=plots.plot_scores(report),
        state_figures=state_plots.plot_states(report),
        rounding=state_plots.plot_rounding(report),
        strips=bars.plot_strips(report),
        panels=bars.list_panels(report),
        columns=table.list_columns(report),
        runs=sentences.group_runs(report),
        sentences=sentences,
        values=values,
        render_chart=render_chart,
        facts=sentences.list_facts(report),
        shown=_SHOWN,
        colour=lambda number: f"s{number % COLOURS}",
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embed(report: Report) -> str:
    """The report's JSON, as an element of HTML may hold it; ASCII, so surrogates survive."""
    text = json.dumps(describe(report), separators=(",", ":"))
    for character, escape in _UNSAFE_IN_SCRIPT.items():
        text = text.replace(character, escape)
    return text
