"""`lfm2-deploy prepare`: make a bundle load faster on this machine."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    print_facts,
    print_json,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, BundlePath


def prepare(
    bundle: BundlePath,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what an earlier `prepare` made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep weights on disk as this processor reads them, to load faster.

    They are then mapped from disk instead of copied into memory of their own: the system
    may take that memory back, and two programs share it. The copy takes about twice the
    bundle's size, in your cache folder. Every command uses it by itself.

    \b
    Examples:
      lfm2-deploy prepare ./LFM2-8B-A1B-cpu-int4
      lfm2-deploy prepare ./LFM2-8B-A1B-cpu-int4 --remove

    \b
    See also:
      lfm2-deploy bench BUNDLE        loading and memory, before and after
    """
    from lfm2_deploy.api import prepare as make
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.registry import find_preparer

    opened = open_bundle(bundle)
    preparer = find_preparer(opened.manifest.runtime)
    if remove:
        there = preparer.remove(opened)
        if as_json:
            print_json({"removed": there})
        else:
            note("removed" if there else f"{bundle} was not prepared on this machine")
        return
    started = time.monotonic()
    with show_progress() as progress:
        folder = make(opened, progress=progress)
    seconds, size = time.monotonic() - started, preparer.measure(folder)
    if as_json:
        print_json({"path": str(folder), "size_bytes": size, "seconds": seconds})
        return
    print_title(str(bundle), f"prepared in {seconds:.1f} s")
    print_facts({"copy": str(folder), "size": format_bytes(size)})
