"""What a user calls a bundle -> its folder. The one place where names of the store are understood.

A folder that exists wins; then a model of the store.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lfm2_deploy.checkpoint.source import is_hub_id
from lfm2_deploy.errors import StoreError, UnknownModelError
from lfm2_deploy.store.locks import gate
from lfm2_deploy.store.names import is_name
from lfm2_deploy.store.place import find_store, record_of
from lfm2_deploy.store.shelf import has_model, list_names
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


def explain_unknown(name: str, root: Path) -> UnknownModelError:
    """The error for what is neither a folder nor a model of the store."""
    try:
        names = list_names(root)
    except StoreError:  # then nothing can be suggested
        names = []
    base = name.rpartition("/")[2]
    longer = [other for other in names if other.lower().startswith(base.lower())]
    near = f"; did you mean {' or '.join(longer[:_MOST_SUGGESTED])}?" if longer else ""
    near = near or suggest(base, names) or ";"
    if "/" in name:
        advice = f"`lfm2-deploy pull {name}` gets it, if it is on the Hub"
    else:
        advice = "`lfm2-deploy list` shows those there are, `lfm2-deploy pull MODEL` gets one"
    return UnknownModelError(f"{name} is no folder and no model in the store{near} {advice}")
