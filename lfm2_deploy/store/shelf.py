"""What lies in a store: what is told of it, how it appears there and how it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from lfm2_deploy.bundle import Bundle, is_bundle, list_foreign, open_bundle
from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import BundleError, StoreError
from lfm2_deploy.intact import ensure_intact, remember_intact
from lfm2_deploy.store.locks import gate, list_users, pulling
from lfm2_deploy.store.names import is_name
from lfm2_deploy.store.place import incoming_of, record_of, trash_of, used_of
from lfm2_deploy.store.records import EXPORTED, Record, read_record, write_record
from lfm2_deploy.words import quote_path

# Nobody takes so long to delete what was removed.
_LONG_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of the store.

    Args:
        name: what commands and `load` call it.
        path: its folder, a bundle.
        source: what was pulled, or where that is not known, what the bundle was made from.
        revision: the commit it was made from, or the one that was asked for; "" where unknown.
        target, precision: what it was made for; "" where it is too damaged to tell.
        size_bytes: all its files.
        last_used: when it was loaded last; None for never.
        in_use: a process has it loaded.
        fault: why it cannot be used, and what to do; "" where nothing is known to be wrong.
    """

    name: str
    path: Path
    source: str
    revision: str
    target: str
    precision: str
    size_bytes: int
    last_used: datetime | None
    in_use: bool
    fault: str


def list_names(root: Path) -> list[str]:
    """Names of all models, damaged ones too, in alphabetical order."""
    try:
        entries = [entry.name for entry in root.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the store {root} cannot be read ({error.strerror or error})") from error
    return sorted((name for name in entries if has_model(root, name)), key=str.lower)


def has_model(root: Path, name: str) -> bool:
    """Whether a folder of the store is a model; another one is left alone."""
    place = root / name
    return (
        is_name(name) and place.is_dir() and (is_bundle(place) or record_of(root, name).is_file())
    )


def list_unfinished(root: Path) -> list[str]:
    """Names of pulls that were begun and have not ended."""
    folder = root / ".incoming"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_name(entry.name))


def describe(root: Path, name: str) -> StoredModel:
    """What is known of a model, from its small files."""
    place, record = root / name, read_record(root, name)
    fault = "" if record is None else record.damaged
    bundle: Bundle | None = None
    try:
        bundle = open_bundle(place)
    except (BundleError, OSError) as error:
        fault = str(error)
    manifest = None if bundle is None else bundle.manifest
    origin = None if manifest is None else manifest.origin
    commit = origin.revision if origin is not None and origin.kind == "hub" else ""
    return StoredModel(
        name=name,
        path=place,
        source=record.source if record else origin.name if origin else "",
        revision=commit or (record.revision if record else ""),
        target=manifest.target if manifest else record.target if record else "",
        precision=manifest.precision if manifest else record.precision if record else "",
        size_bytes=_measure(place),
        last_used=_find_last_use(root, name),
        in_use=bool(list_users(root, name)),
        fault=_advise(name, fault, record) if fault else "",
    )


def _advise(name: str, fault: str, record: Record | None) -> str:
    """A fault with what to do about it here, in place of what the bundle's own check says."""
    what = fault.rpartition("; ")[0] or fault
    if record is None:
        return f"{what}; remove it with `lfm2-deploy remove {name}`"
    revision = f" --revision {record.revision}" if record.revision else ""
    made = (
        f" --target {record.target} --precision {record.precision}"
        if record.kind == EXPORTED
        else ""
    )
    source = quote_path(Path(record.source)) if os.sep in record.source else record.source
    return f"{what}; get it anew with `lfm2-deploy pull {source}{made}{revision} --name {name}`"


def verify(root: Path, name: str, progress: Progress = ignore_progress) -> StoredModel:
    """Hash all files of a model, and keep what comes of it.

    Args:
        root: the store.
        name: the model's.
        progress: told of the bytes done.

    Returns:
        What is known of it then; `fault` says what is wrong.
    """
    fault = ""
    try:
        ensure_intact(open_bundle(root / name), progress, again=True)
    except BundleError as error:
        fault = str(error)
    record = read_record(root, name)
    if record is not None and record.damaged != fault:
        with contextlib.suppress(OSError):
            write_record(root, name, replace(record, damaged=fault))
    model = describe(root, name)
    return replace(model, fault=_advise(name, fault, record)) if fault else model


def put(root: Path, name: str, staged: Path, record: Record, overwrite: bool) -> None:
    """Move a whole bundle to its name, all at once.

    Args:
        root: the store.
        name: the model's.
        staged: the bundle's folder, on the same disk, with every hash checked.
        record: where it came from.
        overwrite: put it in the place of a model that is there.

    Raises:
        StoreError: there is one, and it is in use or not to be replaced.
    """
    with gate(root, name):
        retired = None
        if (root / name).exists():
            if not overwrite:
                raise StoreError(f"{root / name} is in the way: choose another --name")
            require_unused(root, name)
            retired = _retire(root, name)
        try:
            os.replace(staged, root / name)
        except OSError as error:
            if retired is not None:
                os.replace(retired, root / name)
            raise StoreError(
                f"{name} could not be moved into the store ({error.strerror or error}); pull it "
                "again, what was done is kept"
            ) from error
        with contextlib.suppress(OSError):  # the model itself says most of it
            write_record(root, name, record)
    remember_intact(open_bundle(root / name))
    _throw_away(root, retired)


def remove(root: Path, name: str) -> int:
    """Remove a model, and what an unfinished pull has of it.

    Args:
        root: the store.
        name: as `list_names` or `list_unfinished` has it.

    Returns:
        Bytes of its files.

    Raises:
        StoreError: it is loaded or being pulled somewhere, holds files of somebody's own, or
            the store cannot be written; then all is as it was.
    """
    retired, size = None, 0
    with pulling(root, name):
        with gate(root, name):
            if has_model(root, name):
                require_unused(root, name)
                size = _measure(root / name)
                retired = _retire(root, name)
            record_of(root, name).unlink(missing_ok=True)
            used_of(root, name).unlink(missing_ok=True)
        size += _discard(root, name)
    _throw_away(root, retired)
    return size


def discard(root: Path, name: str) -> int:
    """Remove what an unfinished pull has of a model; a model of that name stays.

    Args:
        root: the store.
        name: as `list_unfinished` has it.

    Returns:
        Bytes of its files.

    Raises:
        StoreError: it is being pulled, or the store cannot be written.
    """
    with pulling(root, name):
        return _discard(root, name)


def _discard(root: Path, name: str) -> int:
    folder = incoming_of(root, name)
    size = _measure(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size


def require_unused(root: Path, name: str) -> None:
    """See that a model may be replaced or removed; within its `gate`.

    Raises:
        StoreError: it is loaded somewhere, or holds files of somebody's own.
    """
    users = list_users(root, name)
    if users:
        own = os.getpid()
        who = " and ".join("this one" if user == own else f"{user}" for user in sorted(set(users)))
        raise StoreError(f"{name} is loaded by a process ({who}): close it there and try again")
    place = root / name
    foreign = [] if place.is_symlink() else list_foreign(place)
    if foreign:
        raise StoreError(
            f"{place} also holds {foreign[0]}, which is no part of the model and would be lost: "
            "move it away first"
        )


def _retire(root: Path, name: str) -> Path:
    """Move a model to where nobody finds it; what has its files open can go on reading."""
    try:
        trash_of(root).mkdir(exist_ok=True)
        retired = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=trash_of(root))) / name
        os.replace(root / name, retired)
    except OSError as error:
        raise StoreError(
            f"{name} could not be removed from {root} ({error.strerror or error}): close the "
            "programs that use it and try again"
        ) from error
    return retired


def _throw_away(root: Path, retired: Path | None) -> None:
    """Delete what was removed, and what a process that was killed has left there long ago."""
    if retired is not None:
        shutil.rmtree(retired.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        for entry in trash_of(root).iterdir():
            if time.time() - entry.stat().st_mtime > _LONG_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        trash_of(root).rmdir()


def _measure(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _find_last_use(root: Path, name: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(used_of(root, name).stat().st_mtime, UTC)
    except OSError:
        return None
