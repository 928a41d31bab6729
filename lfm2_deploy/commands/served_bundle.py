"""What `serve` was given -> a bundle that runs here.

A bundle is taken as it is. A model is exported into the store, which knows it the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lfm2_deploy.bundle import MANIFEST, open_bundle
from lfm2_deploy.commands.console import note, notes, show_progress
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.words import quote_path

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle

# What `serve` offers in place of a pull of one's own.
_ALSO = "or --target auto to have that done here"


def find_served(given: str, target: str | None, precision: str | None) -> Bundle:
    """The bundle to serve.

    Args:
        given: a bundle's folder, a name in the store, or, with a target, a model.
        target: "auto", or a target's name; None takes bundles only.
        precision: of an export.

    Raises:
        Lfm2DeployError: it is none of these, cannot be exported, or is not for this computer.
    """
    stored = _find_folder(given)
    if stored is None:
        if target is None:
            _explain_none(given)
        return _export(given, target or "", precision)
    bundle = open_bundle(stored)
    if precision is not None and bundle.manifest.precision != precision:
        raise BundleError(
            f"{given} is a bundle in {bundle.manifest.precision}, and --precision asks for "
            f"{precision}: leave it out, or name the model it was made from"
        )
    if target is not None:
        _check_target(bundle, target.lower())
    return bundle


def _find_folder(given: str) -> Path | None:
    """The folder of a bundle that is there; None where it must be a model."""
    from lfm2_deploy.store.resolve import find_stored

    folder = Path(given).expanduser()
    return folder if (folder / MANIFEST).is_file() else find_stored(given)


def _explain_none(given: str) -> None:
    """Raise what is to be done about something that is no bundle."""
    from lfm2_deploy.checkpoint.source import is_hub_id
    from lfm2_deploy.store.names import is_name
    from lfm2_deploy.store.place import find_store
    from lfm2_deploy.store.resolve import explain_unknown

    exists = Path(given).expanduser().exists()
    if not exists and (is_name(given) or is_hub_id(given)):
        raise explain_unknown(given, find_store(), also=f", {_ALSO}")
    if not exists and ":" not in given:
        raise BundleError(
            f"{given} does not exist: expected a bundle's folder, or a name that `list` shows"
        )
    word = quote_path(Path(given)) if exists else given
    raise BundleError(
        f"{given} is not a bundle: `lfm2-deploy pull {word}` makes one of a model, {_ALSO}"
    )


def _check_target(bundle: Bundle, target: str) -> None:
    """See that a bundle is for a target, and for auto that its device is here."""
    from lfm2_deploy.auto import AUTO, run_probe
    from lfm2_deploy.registry import list_entries

    made_for = bundle.manifest.target
    if target != AUTO:
        if target != made_for:
            raise BundleError(
                f"{bundle.path} is for target {made_for}, and --target asks for {target}: leave "
                "it out, or name the model it was made from"
            )
        return
    entry = list_entries("probe").get(made_for)
    if entry is None:  # nobody knows how to ask; loading will tell
        return
    found = run_probe(entry)
    if not found.available:
        raise RuntimeUnavailableError(
            f"{bundle.path} is for target {made_for}, which this computer does not run "
            f"({found.reason}): name the model it was made from, and --target auto exports it "
            "for what there is"
        )
    note(f"target {made_for}: {found.device or found.reason}")


def _export(model: str, target: str, precision: str | None) -> Bundle:
    from lfm2_deploy.auto import AUTO
    from lfm2_deploy.store.place import find_store
    from lfm2_deploy.store.pull import Wanted, pull
    from lfm2_deploy.store.sources import BundleSource, find_source

    source, wants_any = find_source(model, None), target.lower() == AUTO
    is_made = isinstance(source, BundleSource)  # which is for one target, whatever runs here
    chosen: str | None = target.lower()
    if wants_any:
        chosen = None if isinstance(source, BundleSource) else _choose(source.model, precision)
    with show_progress() as progress:
        progress("starting", 0, 0)
        wanted = Wanted(model, target=chosen, precision=precision)
        name, is_new = pull(find_store(), wanted, progress)
    come = "pulled" if is_made else "exported"
    note(f"{come if is_new else 'found'} {name} in the store")
    bundle = open_bundle(find_store() / name)
    if is_made and wants_any:
        _check_target(bundle, AUTO)
    return bundle


def _choose(model: str, precision: str | None) -> str:
    from lfm2_deploy.api import choose_target
    from lfm2_deploy.commands.auto_report import print_choice

    note("looking for what this computer can run ...")
    choice = choose_target(model, precision=precision or "int4")
    print_choice(choice.candidates, notes())
    return choice.target
