"""`lfm2-deploy remove`: models leave the store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import format_bytes, note, print_json
from lfm2_deploy.commands.failures import ERROR, print_error
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.errors import StoreError

if TYPE_CHECKING:
    from lfm2_deploy.store.model_store import ModelStore


def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Names, as `list` shows them.",
            autocompletion=completers.complete_stored,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Remove every model; asks before it does.")
    ] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Only what unfinished pulls have; models of that name stay."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove models from the store, and what unfinished pulls have of them.

    A model that a running program has loaded, or that is being pulled, stays, and the
    exit code is 1.

    \b
    Examples:
      lfm2-deploy remove LFM2-350M-cpu-int4
      lfm2-deploy remove --all --yes
      lfm2-deploy remove --all --unfinished

    \b
    See also:
      lfm2-deploy list                what is in the store
      lfm2-deploy pull MODEL          bring a model in
    """
    from lfm2_deploy.store.model_store import ModelStore

    store = ModelStore()
    if bool(names) == every:
        raise typer.BadParameter("name the models to remove, or pass --all")
    if every:
        chosen = _choose_all(store, yes, unfinished)
    else:
        chosen = list(dict.fromkeys(names or ()))
        for name in chosen:  # nothing is removed where one of several is mistyped
            store.require_removable(name, unfinished=unfinished)
    removed, failed = {}, {}
    for name in chosen:
        try:
            removed[name] = store.remove(name, unfinished=unfinished)
        except StoreError as error:
            failed[name] = str(error)
    if as_json:
        print_json({"removed": removed, "failed": failed})
    for name, size in removed.items():
        what = "what the unfinished pull had of " if unfinished else ""
        note(f"removed {what}{name} ({format_bytes(size)})")
    for why in failed.values():
        print_error(why)
    if failed:
        raise typer.Exit(ERROR)


def _choose_all(store: ModelStore, yes: bool, unfinished: bool) -> list[str]:
    """Every name, after the user agreed."""
    models = () if unfinished else store.list()
    names = list(dict.fromkeys([*(model.name for model in models), *store.list_unfinished()]))
    if not names or yes:
        return names
    what = "unfinished pulls" if unfinished else "models"
    if not _can_ask():
        raise typer.BadParameter(
            f"--all would remove {len(names)} {what}, and nobody can be asked here: pass --yes"
        )
    size = "" if unfinished else f"{format_bytes(sum(model.size_bytes for model in models))} "
    note(f"{', '.join(names)}: {size}in {store.root}")
    typer.confirm(f"Remove all {len(names)} {what}?", abort=True, err=True)
    return names


def _can_ask() -> bool:
    return sys.stdin.isatty()
