"""What `serve` was given -> a bundle that runs here.

A bundle is taken as it is. A model is exported into the store, which knows it the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lfm2_deploy.bundle import MANIFEST, open_bundle
from lfm2_deploy.commands.console import note, notes, show_progress
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle


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
    folder = Path(given).expanduser()
    if folder.exists() or "/" in given or ":" in given:
        raise BundleError(
            f"{given} is not a bundle: export it first, or add --target auto to have that done"
        )
    from lfm2_deploy.store.resolve import resolve

    resolve(given)


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

    if target.lower() == AUTO:
        target = _choose(model, precision)
    with show_progress() as progress:
        progress("starting", 0, 0)
        wanted = Wanted(model, target=target.lower(), precision=precision)
        name, is_new = pull(find_store(), wanted, progress)
    note(f"{'exported' if is_new else 'found'} {name} in the store")
    return open_bundle(find_store() / name)


def _choose(model: str, precision: str | None) -> str:
    from lfm2_deploy.api import choose_target
    from lfm2_deploy.commands.auto_report import print_choice

    note("looking for what this computer can run ...")
    choice = choose_target(model, precision=precision or "int4")
    print_choice(choice.candidates, notes())
    return choice.target
