"""README.md of a bundle: written, and brought up to date around what somebody wrote by hand.

Between two marks the text is ours and is written anew; before and after them it is the user's and
stays, as do keys of the metadata that were added or changed. Without measurements, the same bundle
gives the same bytes.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from lfm2_deploy.bundle import CANARY, CARD, Bundle
from lfm2_deploy.card import facts, metadata
from lfm2_deploy.card.measurements import (
    Measurement,
    read_measurements,
    replace_file,
    write_measurements,
)
from lfm2_deploy.card.usage import find_place, list_missing, list_usages
from lfm2_deploy.charts.text import make_visible
from lfm2_deploy.errors import BundleError
from lfm2_deploy.manifest import read_manifest
from lfm2_deploy.units import format_bytes

_BEGIN = re.compile(r"<!-- lfm2-deploy: begin(?: of ([\w./-]+))?[^>]*-->")
_END = "<!-- lfm2-deploy: end -->"
_STRAY = re.compile(r"^<!-- lfm2-deploy: (?:begin|end)[^>]*-->\n?", re.MULTILINE)
# What Markdown and HTML would take for markup of theirs.
_MARKUP = re.compile(r"([\\`*_\[\]<>|#])")


def make_card(bundle: Bundle, repository: str | None = None, overwrite: bool = False) -> str:
    """The card as it should be now.

    Args:
        bundle: what it is of; a README.md in its folder is read.
        repository: the Hub id under which it will be found; None for what the card there says.
        overwrite: without what somebody wrote by hand.

    Raises:
        BundleError: README.md cannot be read, or measurements.json is damaged.
    """
    there = "" if overwrite else read_card(bundle.path)
    return merge_card(there, bundle, bundle, repository)


def is_edited(card: str, bundle: Bundle) -> bool:
    """Whether somebody wrote something of a card by hand."""
    items, body = metadata.split(card)
    above, below, _ = _split(body)
    return bool(above.strip() or below.strip()) or (
        bool(items) and items != metadata.describe(bundle)
    )


def write_card(bundle: Bundle, repository: str | None = None, overwrite: bool = False) -> str:
    """Write README.md; see `make_card`.

    Raises:
        BundleError: as there, or the folder takes no files.
    """
    text = make_card(bundle, repository, overwrite)
    replace_file(bundle, CARD, text)
    return text


def begin_card(folder: Path, replaced: Path) -> None:
    """Give a bundle that was just made its card, before it takes its place.

    Args:
        folder: the bundle, sealed.
        replaced: the place it will take: what somebody wrote by hand into the card there is
            carried over, and measurements of the very same graphs and weights.

    Raises:
        BundleError: the folder takes no files.
    """
    bundle = Bundle(folder, *read_manifest(folder))
    before, there = bundle, ""
    # An export that took hours does not fail for a card that cannot be read.
    with contextlib.suppress(BundleError):
        there = read_card(replaced)
        before = Bundle(replaced, *read_manifest(replaced))
        kept = read_measurements(before) if before.identity == bundle.identity else ()
        if kept:
            write_measurements(bundle, kept)
    replace_file(bundle, CARD, merge_card(there, before, bundle, None))


def read_card(folder: Path) -> str:
    """The card in a folder, "" for none; bytes that are no UTF-8 survive, as others write it back.

    Raises:
        BundleError: it cannot be read.
    """
    file = folder / CARD
    if not file.is_file():
        return ""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror or error})") from error


def merge_card(there: str, before: Bundle, bundle: Bundle, repository: str | None) -> str:
    """A bundle's card, with what somebody wrote by hand into another.

    Args:
        there: that card; "" for none.
        before: the bundle it was written of: what was written of that is nobody's own.
        bundle: what the new one is of.
        repository: where it will be found; None for what the card there says.
    """
    items, body = metadata.split(there)
    above, below, known = _split(body)
    wanted = known if repository is None else repository
    now = metadata.describe(bundle)
    if items:
        now = metadata.merge(items, metadata.describe(before), now)
    mark = f"<!-- lfm2-deploy: begin{f' of {wanted}' if wanted else ''}; "
    mark += "write above or below, `lfm2-deploy card` renews what is between -->"
    own = "\n".join([mark, _render(bundle, wanted).strip(), _END])
    parts = [metadata.write(now), above.strip("\n"), own, below.strip("\n")]
    return "\n".join(f"{part.rstrip()}\n" for part in parts if part.strip())


def _split(body: str) -> tuple[str, str, str]:
    """What stands above and below our part, and the repository it names."""
    begin = _BEGIN.search(body)
    end = body.find(_END, begin.end() if begin else 0)
    if begin is None or end < 0:
        return "", _STRAY.sub("", body), ""
    above, below = body[: begin.start()], body[end + len(_END) :]
    return _STRAY.sub("", above), _STRAY.sub("", below), begin[1] or ""


def _render(bundle: Bundle, repository: str) -> str:
    found = read_measurements(bundle)
    return _find_template().render(**_describe(bundle, found, repository))


def _describe(bundle: Bundle, found: Sequence[Measurement], repository: str) -> Mapping[str, Any]:
    manifest, place = bundle.manifest, find_place(bundle, repository)
    folder = shlex.quote(place.folder if repository else f"./{place.folder}")
    model = manifest.model.rpartition("/")[2]
    return {
        "title": f"{escape(model)} · {escape(manifest.precision)} · {escape(manifest.target)}",
        "origin": facts.describe_origin(bundle),
        "target": escape(facts.describe_target(bundle)),
        "precision": manifest.precision,
        "weights": facts.describe_weights(bundle),
        "size": format_bytes(bundle.size_bytes),
        "memory": facts.describe_memory(bundle),
        "context": manifest.context_length,
        "usages": list_usages(bundle, place),
        "missing": list_missing(bundle),
        "accuracy": facts.summarize_accuracy(found),
        "accuracy_groups": facts.list_accuracy(found),
        "rounding": facts.describe_rounding(bundle),
        "devices": facts.list_devices(bundle, found),
        "devices_line": facts.summarize_devices(bundle, found),
        "has_canary": CANARY in manifest.files,
        "speeds": facts.list_speeds(found),
        "files": facts.list_files(bundle),
        "command": facts.describe_command(bundle),
        "versions": ", ".join(f"{name} {made}" for name, made in manifest.made_with.items()),
        "notes": manifest.notes,
        "commands": {
            # Without a canary there is nothing to check, and comparing shows that it runs.
            "check": f"lfm2-deploy {'check' if CANARY in manifest.files else 'compare'} {folder} "
            "--record",
            "compare": f"lfm2-deploy compare {folder} --record",
        },
    }


def escape(text: object) -> str:
    """Text of anybody's as Markdown that shows just that, in one line."""
    line = " ".join(str(text).split())
    return _MARKUP.sub(r"\\\1", make_visible(line))


def _code(text: object) -> str:
    return f"`{facts.escape_code(str(text))}`"


@cache
def _find_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lfm2_deploy.card"),
        autoescape=False,  # it is Markdown: `cell` and `code` escape what others wrote
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": escape, "code": _code}
    return environment.get_template("card.md.jinja")
