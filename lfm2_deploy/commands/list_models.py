"""`lfm2-deploy list`: which models are in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    print_json,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.failures import ERROR
from lfm2_deploy.commands.options import AsJson

if TYPE_CHECKING:
    from lfm2_deploy.store.shelf import StoredModel

_UNITS = (
    ("day", timedelta(days=1)),
    ("hour", timedelta(hours=1)),
    ("minute", timedelta(minutes=1)),
)


def list_models(
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file of every model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models in the store.

    The exit code is 1 if one is known to be damaged. Without --verify, sizes and small
    files are looked at; large files are hashed when a model is first loaded.

    \b
    Examples:
      lfm2-deploy list
      lfm2-deploy list --verify --json

    \b
    See also:
      lfm2-deploy pull MODEL          bring a model in
      lfm2-deploy check NAME          hash one, and run its canary
      lfm2-deploy remove NAME         take it out again
    """
    from lfm2_deploy.store.model_store import ModelStore

    store = ModelStore()
    models, unfinished = store.list(), store.list_unfinished()
    if verify:
        with show_progress() as progress:
            models = tuple(store.check(model.name, progress) for model in models)
    if as_json:
        print_json(
            {
                "store": str(store.root),
                "models": [describe_model(model) for model in models],
                "unfinished": list(unfinished),
            }
        )
    else:
        _print(store.root, models, unfinished)
    if any(model.fault for model in models):
        raise typer.Exit(ERROR)


def describe_model(model: StoredModel) -> dict[str, Any]:
    """The JSON object of a model."""
    return {
        "name": model.name,
        "path": str(model.path),
        "source": model.source,
        "revision": model.revision,
        "target": model.target,
        "precision": model.precision,
        "size_bytes": model.size_bytes,
        "last_used": model.last_used and model.last_used.isoformat(timespec="seconds"),
        "in_use": model.in_use,
        "fault": model.fault,
    }


def _print(root: Path, models: Sequence[StoredModel], unfinished: Sequence[str]) -> None:
    if models:
        total = sum(model.size_bytes for model in models)
        print_title(str(root), format_bytes(total))
        print_table(
            ("name", "target", "precision", ">size", "last used", "from"),
            [_list_cells(model) for model in models],
        )
    else:
        note(f"no models in {root}: `lfm2-deploy pull MODEL` gets one")
    for model in models:
        if model.fault:
            note(f"{model.name}: {model.fault}")
    whole = {model.name for model in models}
    for name in unfinished:
        note(f"{name}: {tell_unfinished(name, name in whole)}")


def tell_unfinished(name: str, has_model: bool) -> str:
    """What is said of a pull that has not ended, where its name may have a model, too."""
    if has_model:  # which a plain `remove` would take along
        return (
            "a pull to replace it has not ended; the same pull, with --overwrite, goes on, "
            f"`lfm2-deploy remove {name} --unfinished` discards what it has"
        )
    return (
        "its pull has not ended; the same pull goes on, "
        f"`lfm2-deploy remove {name}` discards what is there"
    )


def _list_cells(model: StoredModel) -> tuple[str, ...]:
    used = "now" if model.in_use else tell_age(model.last_used, datetime.now(UTC))
    size = "damaged" if model.fault else format_bytes(model.size_bytes)
    return (model.name, model.target, model.precision, size, used, model.source)


def tell_age(then: datetime | None, now: datetime) -> str:
    """How long ago something was, in its largest unit: "3 hours ago"."""
    if then is None:
        return "never"
    for word, unit in _UNITS:
        count = (now - then) // unit
        if count > 0:
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"
