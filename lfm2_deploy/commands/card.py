"""`lfm2-deploy card`: a bundle's model card; and how other commands add to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands.console import note
from lfm2_deploy.commands.options import BundlePath

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.card.measurements import Measurement


def card(
    bundle: BundlePath,
    repository: Annotated[
        str | None,
        typer.Option(
            metavar="USER/REPO",
            help="Write for who finds it there on the Hub.",
            show_default="what the card says, or a folder",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the card to stdout, and write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard what was written into it by hand.")
    ] = False,
) -> None:
    """Write a bundle's model card, README.md, anew.

    `export` writes one, and commands with --record bring it up to date with what they
    measured; a figure that nobody measured is not shown. What you write above or below
    the marked part stays, and so do metadata that you add or change.

    \b
    Examples:
      lfm2-deploy card ./LFM2-350M-cpu-int4
      lfm2-deploy card ./LFM2-350M-cpu-int4 --print

    \b
    See also:
      lfm2-deploy compare BUNDLE --record    what a precision costs
      lfm2-deploy check BUNDLE --record      does this device compute it rightly?
      lfm2-deploy push BUNDLE USER/REPO      upload it, with its card
    """
    from lfm2_deploy.bundle import CARD, open_bundle
    from lfm2_deploy.card.write import make_card, write_card
    from lfm2_deploy.checkpoint.source import has_hub_form

    if repository is not None and not has_hub_form(repository):
        raise typer.BadParameter(f"--repository {repository!r}: write USER/REPO")
    opened = open_bundle(bundle)
    if show:
        text = make_card(opened, repository, overwrite)
        sys.stdout.write(text.encode("utf-8", errors="replace").decode("utf-8"))
        return
    write_card(opened, repository, overwrite)
    note(f"written: {opened.path / CARD}")


def keep(bundle: Bundle, found: Sequence[Measurement]) -> None:
    """Keep what was measured with a bundle, and say so.

    Raises:
        BundleError: its folder takes no files, or holds a damaged measurements.json.
    """
    from lfm2_deploy.bundle import CARD, MEASUREMENTS
    from lfm2_deploy.card.recording import record

    record(bundle, found)
    note(f"recorded in {bundle.path / MEASUREMENTS}, and shown in {CARD}")
