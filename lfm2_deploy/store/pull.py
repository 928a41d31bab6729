"""Pull a model: find out what it is, fetch or export it aside, move it to its name when whole.

What an interrupted pull has done is kept, and the same pull goes on with it. Two processes that
pull one name do not disturb each other: the second waits, and finds it done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.auto import AUTO
from lfm2_deploy.bundle import MANIFEST, Bundle, open_bundle
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import BundleError, ResumeError, StoreError
from lfm2_deploy.exporting import choose_target, export
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.model_parts import check_part
from lfm2_deploy.store.fetch import fetch_bundle, tell_full_disk
from lfm2_deploy.store.locks import gate, pulling
from lfm2_deploy.store.names import check_name, make_name, name_bundle
from lfm2_deploy.store.place import explain_unwritable, find_owner, incoming_of
from lfm2_deploy.store.records import BUNDLE, EXPORTED, Record, make_record, read_record
from lfm2_deploy.store.shelf import has_model, put, require_unused
from lfm2_deploy.store.sources import BundleSource, CheckpointSource, find_source, write_source
from lfm2_deploy.unfinished import find_unfinished

TARGET, PRECISION = "cpu", "int4"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks for.

    Args:
        model: a Hub id, a folder, "synthetic:NAME" or "demo".
        name: what to call it; None for the default.
        target, precision: of the bundle; None for what comes: of a checkpoint cpu and int4.
        revision: of a Hub repository.
        overwrite: replace a model of that name.
        part: "text" for the text part of a vision or audio model.
    """

    model: str
    name: str | None = None
    target: str | None = None
    precision: str | None = None
    revision: str | None = None
    overwrite: bool = False
    part: str | None = None


def pull(root: Path, wanted: Wanted, progress: Progress) -> tuple[str, bool]:
    """Have a model in the store.

    Args:
        root: the store.
        wanted: which.
        progress: told of each step.

    Returns:
        The model's name, and whether it came now; else it was there.

    Raises:
        Lfm2DeployError: in one line; a model that was there is as it was.
    """
    if wanted.name is not None:
        check_name(wanted.name)
    known = None if wanted.overwrite else _find_known(root, wanted, progress)
    if known is not None:
        return known, False
    source = find_source(wanted.model, wanted.revision, check_part(wanted.part))
    if isinstance(source, BundleSource):
        if wanted.part is not None:
            raise StoreError(f"{wanted.model} is a bundle already: leave --part out")
        return _pull_bundle(root, wanted, source, progress)
    return _pull_checkpoint(root, wanted, source, progress)


def _find_known(root: Path, wanted: Wanted, progress: Progress) -> str | None:
    """The model that an equal pull has brought, which needs no network then."""
    names = [wanted.name] if wanted.name else _list_default_names(wanted)
    for name in names:
        record = read_record(root, name)
        if record is not None and _answers(record, wanted) and _is_whole(root, name, progress):
            return name
    return None


def _list_default_names(wanted: Wanted) -> list[str]:
    target, precision = wanted.target or TARGET, wanted.precision or PRECISION
    exported = make_name(name_bundle(wanted.model, None, target, precision, wanted.part))
    return [exported, make_name(_last_part(wanted.model))]


def _last_part(model: str) -> str:
    """The repository's or the folder's own name."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model.rpartition("/")[2]


def _answers(record: Record, wanted: Wanted) -> bool:
    """Whether what a record tells of is what a pull would bring."""
    if (record.source, record.revision) != (write_source(wanted.model), wanted.revision or ""):
        return False
    usual = (TARGET, PRECISION)
    if record.kind == BUNDLE:
        usual = (record.target, record.precision)
    asked = ((wanted.target or usual[0]).lower(), wanted.precision or usual[1])
    return asked == (record.target, record.precision)


def _is_whole(root: Path, name: str, progress: Progress) -> bool:
    """Whether a model is there, and as it was written as far as can be known quickly."""
    record = read_record(root, name)
    if not has_model(root, name) or (record is not None and record.damaged):
        return False
    try:
        ensure_intact(open_bundle(root / name), progress)
    except (BundleError, OSError):
        return False
    return True


def _pull_bundle(
    root: Path, wanted: Wanted, source: BundleSource, progress: Progress
) -> tuple[str, bool]:
    manifest = source.manifest
    if not source.repository and find_owner(source.folder) is not None:
        raise StoreError(f"{source.folder} is in the store already, as {source.folder.name}")
    for option, asked, found in (
        ("target", wanted.target, manifest.target),
        ("precision", wanted.precision, manifest.precision),
    ):
        if asked is not None and asked.lower() != found:
            raise StoreError(
                f"{wanted.model} is a bundle of {option} {found}, and {asked} was asked for: leave "
                f"--{option} out, or pull the model it was made from ({manifest.model})"
            )
    name = wanted.name or make_name(_last_part(wanted.model))

    sealed = (source.folder / MANIFEST).read_bytes()
    with _claiming(root, name, progress) as folder:
        if not wanted.overwrite and _is_there(root, name, progress):
            if (root / name / MANIFEST).read_bytes() != sealed:
                raise _explain_taken(root, name)
            return name, False
        _require_replaceable(root, name)
        # What comes of one manifest is never mixed with what came of another.
        part = folder / f"+{hashlib.sha256(sealed).hexdigest()[:16]}"
        for other in folder.iterdir():
            if other != part and other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
        _bring(root, name, fetch_bundle(source, part, progress), wanted, BUNDLE)
    return name, True


def _pull_checkpoint(
    root: Path, wanted: Wanted, source: CheckpointSource, progress: Progress
) -> tuple[str, bool]:
    target, precision = (wanted.target or TARGET).lower(), wanted.precision or PRECISION
    chosen = (
        choose_target(source.model, precision=precision, revision=wanted.revision, part=wanted.part)
        if target == AUTO
        else target
    )
    target = chosen if isinstance(chosen, str) else chosen.target
    name = wanted.name or make_name(name_bundle(source.name, None, target, precision, wanted.part))

    def make(folder: Path, resume: bool) -> Bundle:
        return export(
            source.model,
            folder / name,
            target=chosen,
            precision=precision,
            revision=wanted.revision,
            part=wanted.part,
            overwrite=True,
            resume=resume,
            progress=progress,
        )

    with _claiming(root, name, progress) as folder:
        if not wanted.overwrite and _is_there(root, name, progress):
            found = read_record(root, name)
            asked = Wanted(wanted.model, name, target, precision, wanted.revision)
            if found is None or found.kind != EXPORTED or not _answers(found, asked):
                raise _explain_taken(root, name)
            return name, False
        _require_replaceable(root, name)
        with tell_full_disk(folder):
            try:
                bundle = make(folder, find_unfinished(folder / name) is not None)
            except ResumeError:  # what was begun is of something else, or of another version
                bundle = make(folder, False)
        _bring(root, name, bundle, wanted, EXPORTED)
    return name, True


def _is_there(root: Path, name: str, progress: Progress) -> bool:
    """Whether the name is taken; a damaged model does not take it."""
    if _is_whole(root, name, progress):
        return True
    place = root / name
    if place.exists() and not has_model(root, name):
        raise StoreError(f"{place} is in the way, and is no model: choose another --name")
    return False


def _require_replaceable(root: Path, name: str) -> None:
    """Refuse before the work what moving it into place would refuse after it.

    Raises:
        StoreError: what is there is in use, or holds files of somebody's own.
    """
    if (root / name).exists():
        with gate(root, name):
            require_unused(root, name)


def _explain_taken(root: Path, name: str) -> StoreError:
    record = read_record(root, name)
    made_from = "" if record is None else f", from {record.source}"
    if record is not None and record.revision:
        made_from += f" at revision {record.revision}"
    return StoreError(
        f"the store has another model called {name}{made_from}: choose another --name, or pass "
        "--overwrite to replace it"
    )


def _bring(root: Path, name: str, bundle: Bundle, wanted: Wanted, kind: str) -> None:
    record = make_record(write_source(wanted.model), wanted.revision or "", kind, bundle)
    # What is there now is damaged, or to be overwritten.
    put(root, name, bundle.path, record, overwrite=True)
    shutil.rmtree(incoming_of(root, name), ignore_errors=True)


@contextmanager
def _claiming(root: Path, name: str, progress: Progress) -> Iterator[Path]:
    """The folder for what a pull has so far; it stays where the pull can go on with something.

    Raises:
        StoreError: the store cannot be written.
    """
    with pulling(root, name, progress):
        folder = incoming_of(root, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_unwritable(root, error) from error
        try:
            yield folder
        finally:
            _drop_empty(folder)


def _drop_empty(folder: Path) -> None:
    """Remove folders in which nothing was kept, and the one they lie in."""
    with contextlib.suppress(OSError):
        for inner, _, _ in os.walk(folder, topdown=False):
            os.rmdir(inner)
        folder.parent.rmdir()
