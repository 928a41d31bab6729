"""`lfm2-deploy pull`: a model comes into the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    print_facts,
    print_json,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.list_models import describe_model, tell_unfinished
from lfm2_deploy.commands.options import AsJson, Part, Precision

if TYPE_CHECKING:
    from lfm2_deploy.store.shelf import StoredModel


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Hub id, of a checkpoint or a bundle; the folder of either; synthetic:NAME; "
            "or demo, which comes with this package.",
            autocompletion=completers.complete_sources,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What to call it.",
            show_default="MODEL-TARGET-PRECISION, or the bundle's",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where it will run; `doctor` lists targets. auto: what this computer runs.",
            show_default="cpu, or the bundle's",
            autocompletion=completers.complete_targets_or_auto,
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="NAME",
            help="How weights are stored: fp32, fp16, int8 or int4.",
            show_default="int4, or the bundle's",
        ),
    ] = None,
    part: Part = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model of that name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a model into the store, where every command finds it by its name.

    A checkpoint is downloaded and exported; a bundle is only downloaded or copied, and
    every file is hashed. One that is there already is not fetched again. When a pull was
    interrupted, the same command goes on. The store is among your user data, or where
    the environment variable LFM2_DEPLOY_STORE says.

    \b
    Examples:
      lfm2-deploy pull LiquidAI/LFM2-350M
      lfm2-deploy pull LiquidAI/LFM2-350M --target npu --precision int8
      lfm2-deploy pull ./my-bundle --name mine

    \b
    See also:
      lfm2-deploy list                what is in the store
      lfm2-deploy chat NAME           talk with it
      lfm2-deploy serve NAME          serve it to other programs
      lfm2-deploy remove NAME         take it out again
    """
    started = time.monotonic()
    with _tell_how_to_go_on(), show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy.store.place import find_store
        from lfm2_deploy.store.pull import Wanted
        from lfm2_deploy.store.pull import pull as run
        from lfm2_deploy.store.shelf import describe, list_unfinished

        wanted = Wanted(model, name, target, precision, revision, overwrite, part)
        found, came = run(find_store(), wanted, progress)
        stored = describe(find_store(), found)
        is_left = found in list_unfinished(find_store())
    if as_json:
        print_json({**describe_model(stored), "pulled": came})
        return
    _print(stored, came, time.monotonic() - started)
    if is_left:
        note(f"{found}: {tell_unfinished(found, True)}")
    if came:
        _remark_on_target(stored.target)
    _tell_next(stored)


@contextmanager
def _tell_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note("stopped; the same command goes on where this one was")
        raise


def _remark_on_target(target: str) -> None:
    """Say so where this computer lacks what the model was made for."""
    from lfm2_deploy.auto import run_probe
    from lfm2_deploy.registry import list_entries
    from lfm2_deploy.store.pull import TARGET

    entry = None if target == TARGET else list_entries("probe").get(target)
    found = None if entry is None else run_probe(entry)
    if found is not None and not found.available:
        note(
            f"this computer does not run target {target} ({found.reason}): take it to one that "
            "does; `lfm2-deploy doctor` says what runs here"
        )


def _print(model: StoredModel, came: bool, seconds: float) -> None:
    print_title(model.name, f"pulled in {seconds:.1f} s" if came else "in the store already")
    print_facts(
        {
            "from": model.source,
            "path": str(model.path),
            "size": format_bytes(model.size_bytes),
            "precision": model.precision,
            "target": model.target,
        }
    )


def _tell_next(model: StoredModel) -> None:
    if (model.path / "tokenizer.json").is_file():
        note(f"next: lfm2-deploy chat {model.name}")
    else:
        note(f"next: lfm2-deploy inspect {model.name} (it has no tokenizer, so it takes no text)")
