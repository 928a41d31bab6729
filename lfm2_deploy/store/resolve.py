"""What a user calls a bundle -> its folder. The one place where names of the store are understood.

A folder that exists wins; then a model of the store.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lfm2_deploy.checkpoint.source import is_hub_id
from lfm2_deploy.errors import BundleError, StoreError, UnknownModelError
from lfm2_deploy.manifest import read_manifest
from lfm2_deploy.store.locks import gate
from lfm2_deploy.store.names import is_name
from lfm2_deploy.store.place import find_owner, find_store, record_of
from lfm2_deploy.store.records import read_record
from lfm2_deploy.store.shelf import has_model, list_names
from lfm2_deploy.store.sources import DEMO
from lfm2_deploy.words import suggest

_MOST_SUGGESTED = 3


def resolve(given: str | Path, root: Path | None = None) -> Path:
    """The folder of a bundle that was named by its path or by its name in the store.

    Args:
        given: what the user wrote.
        root: the store's folder; the user's when None.

    Returns:
        A folder; one that was given as a path need not exist, and `open_bundle` says so then.

    Raises:
        UnknownModelError: it can only be a name, and no model has it.
    """
    stored = find_stored(given, root)
    path = Path(given)
    if stored is not None:
        return stored
    text = str(given)
    if path.exists() or not (is_name(text) or is_hub_id(text)):
        return path
    raise explain_unknown(text, root or find_store())


def find_stored(given: str | Path, root: Path | None = None) -> Path | None:
    """The folder of the model of that name; None where a path of that name exists, or no model."""
    text = str(given)
    root = root or find_store()
    if not is_name(text) or Path(given).exists():
        return None
    if not has_model(root, text) and record_of(root, text).is_file():
        with suppress(StoreError), gate(root, text):
            pass  # somebody replaces it, which is done now
    return root / text if has_model(root, text) else None


def explain_unknown(
    name: str, root: Path, *, to_have: bool = True, also: str = ""
) -> UnknownModelError:
    """The error for what is neither a folder nor a model of the store.

    Args:
        name: what the user wrote.
        root: the store.
        to_have: it is wanted, so how to get it is told.
        also: what else would get it.
    """
    near = suggest_stored(name, root) or ";"
    if not to_have:
        return UnknownModelError(
            f"{name} is no model in the store{near} `lfm2-deploy list` shows those there are"
        )
    if "/" in name:
        advice = f"`lfm2-deploy pull {name}` gets it, if it is on the Hub{also}"
    elif name == DEMO:
        advice = f"`lfm2-deploy pull {name}` gets it{also}"
    else:
        advice = "`lfm2-deploy list` shows those there are, `lfm2-deploy pull MODEL` gets one"
    return UnknownModelError(f"{name} is no folder and no model in the store{near} {advice}")


def suggest_stored(name: str, root: Path) -> str:
    """What is said of models that may be meant: "; did you mean demo-cpu-int4?", or ""."""
    try:
        names = list_names(root)
    except StoreError:  # then nothing can be suggested
        return ""
    base = name.rpartition("/")[2].lower()
    made = [other for other in names if base in _list_origins(root, other)]
    longer = [other for other in names if other.lower().startswith(base)]
    meant = list(dict.fromkeys([*made, *longer]))[:_MOST_SUGGESTED] if base else []
    return f"; did you mean {' or '.join(meant)}?" if meant else suggest(base, names)


def list_asked(path: Path) -> list[str]:
    """What a model of the store was pulled by, where that is no folder; [] of other bundles."""
    owner = find_owner(path)
    record = None if owner is None else read_record(*owner)
    is_path = record is not None and os.sep in record.source and Path(record.source).is_absolute()
    return [] if record is None or is_path else [record.source]


def _list_origins(root: Path, name: str) -> set[str]:
    """What a model was made from: what it calls itself and its source, without an owner."""
    record = read_record(root, name)
    told = [] if record is None else [record.source]
    with suppress(BundleError, OSError):
        told.append(read_manifest(root / name)[0].model)
    return {origin.replace("\\", "/").rpartition("/")[2].lower() for origin in told}
