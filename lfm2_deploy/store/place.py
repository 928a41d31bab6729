"""Where the store is, and where in it everything lies."""

from __future__ import annotations

import os
from pathlib import Path

from lfm2_deploy.entry import PACKAGE
from lfm2_deploy.errors import StoreError
from lfm2_deploy.store.names import is_name

STORE_VARIABLE = "LFM2_DEPLOY_STORE"


def find_store() -> Path:
    """The store's folder, which need not exist: LFM2_DEPLOY_STORE, or among the user's data."""
    chosen = os.environ.get(STORE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path(PACKAGE, appauthor=False) / "models"


def incoming_of(root: Path, name: str) -> Path:
    """The folder of what a pull has so far."""
    return root / ".incoming" / name


def record_of(root: Path, name: str) -> Path:
    """The file that says where a model came from."""
    return root / ".records" / f"{name}.json"


def used_of(root: Path, name: str) -> Path:
    """The empty file whose time is that of the model's last load."""
    return root / ".records" / f"{name}.used"


def trash_of(root: Path) -> Path:
    """The folder of what is being removed."""
    return root / ".trash"


def find_owner(path: Path) -> tuple[Path, str] | None:
    """The store and the name of the model whose folder a path is; None where it is no store's.

    A store at another place than `find_store`'s is known by its records.
    """
    place = path.resolve()
    root, name = place.parent, place.name
    if not is_name(name):
        return None
    is_ours = root == find_store().resolve() or record_of(root, name).is_file()
    return (root, name) if is_ours else None


def explain_unwritable(root: Path, error: OSError) -> StoreError:
    """The error for a store that nothing can be written to."""
    return StoreError(
        f"nothing can be written in the store {root} ({error.strerror or error}): make it "
        f"writable, or set {STORE_VARIABLE} to another folder"
    )
