"""A bundle while it is written: beside its place, and renamed when whole.

    .NAME.partial/        the bundle so far
    .NAME.partial.jsonl   what is done of it; with that, an interrupted export can go on
    .NAME.partial.rounded/  layers that were rounded already, likewise
    .NAME.partial.lock    held by the process that writes

One process at a time writes to a place; one that was killed holds no lock.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lfm2_deploy.bundle import MANIFEST, check_destination
from lfm2_deploy.errors import BundleError, DiskFullError, ResumeError

# After these an export can go on where it was; others would come again.
_RESUMABLE = (KeyboardInterrupt, DiskFullError, ResumeError, BundleError, OSError)


@contextmanager
def writing_bundle(path: Path, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes the bundle `path` when the block ends well.

    The block must call `seal` on the folder. When it fails, `path` is as it was. The
    scratch folder is removed then, unless it has a journal and the failure was no fault of
    what is written: an interruption, a full disk, a place that is taken. Layers that were
    rounded take hours and are kept whatever happened.

    Args:
        path: the folder to make.
        overwrite: replace a bundle that is already there, and layers that were rounded.
        resume: begin with what an interrupted block left, if anything.

    Raises:
        BundleError: something is at `path` that may not be replaced, or another process
            is writing there.
    """
    check_destination(path, overwrite)
    check_unfinished(path, overwrite, resume)
    path = path.resolve()
    with _claim(path):
        scratch = _make_scratch(path, resume)
        try:
            yield scratch
            if not (scratch / MANIFEST).is_file():
                raise BundleError(f"{path} was not finished; nothing was kept")
            check_destination(path, overwrite)  # an export is long, and somebody may have come
            _move_into_place(scratch, path)
            _forget(scratch)
        except _RESUMABLE:
            if not _can_go_on(scratch):
                _remove(scratch)
            raise
        except BaseException:
            if not _count_layers(scratch):
                _remove(scratch)
            raise


def check_unfinished(path: Path, overwrite: bool, resume: bool) -> None:
    """Refuse to lose layers whose rounding took long.

    Raises:
        BundleError: an interrupted export to `path` left some, and nothing says what of them.
    """
    layers = count_rounded(path)
    if layers and not (overwrite or resume):
        raise BundleError(
            f"an interrupted export to {path} has rounded {layers} layers (kept in "
            f"{rounded_of(_name_scratch(path.resolve()))}): its command with --resume goes on, "
            "--overwrite discards them"
        )


def count_rounded(path: Path) -> int:
    """How many layers an interrupted export to `path` has rounded."""
    return _count_layers(_name_scratch(path.resolve()))


def journal_of(scratch: Path) -> Path:
    """Where the journal of a scratch folder is kept: beside it, as it is no part of the bundle."""
    return scratch.with_name(f"{scratch.name}.jsonl")


def rounded_of(scratch: Path) -> Path:
    """Where layers that were rounded are kept until the bundle is whole."""
    return scratch.with_name(f"{scratch.name}.rounded")


def find_unfinished(path: Path) -> Path | None:
    """The scratch folder of an interrupted export to `path`, if one can be resumed."""
    scratch = _name_scratch(path.resolve())
    return scratch if scratch.is_dir() and _can_go_on(scratch) else None


def find_kept(path: Path) -> Path | None:
    """Where most of the work of an interrupted export to `path` lies, if it can be resumed."""
    scratch = find_unfinished(path)
    if scratch is None or journal_of(scratch).is_file():
        return scratch
    return rounded_of(scratch)


def _count_layers(scratch: Path) -> int:
    return len(list(rounded_of(scratch).glob("layer.*.json")))


def _remove(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    _forget(scratch)


def _can_go_on(scratch: Path) -> bool:
    """Whether anything was done that need not be done again."""
    return journal_of(scratch).is_file() or any(rounded_of(scratch).glob("*.json"))


def _forget(scratch: Path) -> None:
    """Remove what only an unfinished export needs."""
    journal_of(scratch).unlink(missing_ok=True)
    shutil.rmtree(rounded_of(scratch), ignore_errors=True)


def _name_scratch(path: Path) -> Path:
    return path.parent / f".{path.name}.partial"


def name_place(folder: Path) -> str:
    """What a bundle's folder is called, or of a scratch folder, will be."""
    name = folder.resolve().name
    is_scratch = name.startswith(".") and name.endswith(".partial")
    return name[1 : -len(".partial")] if is_scratch else name


@contextmanager
def _claim(path: Path) -> Iterator[None]:
    """Keep other processes from writing to the same place."""
    scratch = _name_scratch(path)
    lock = FileLock(f"{scratch}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(
            f"another process is writing {path}: wait until it ends, or choose another folder"
        ) from error
    except OSError as error:
        raise BundleError(_explain_unwritable(path, error)) from error
    try:
        yield
    finally:
        # While it is held: who waits for a name that was removed begins anew, and does not
        # get a lock that nobody else can see. Windows removes it by itself.
        if sys.platform != "win32":
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _make_scratch(path: Path, resume: bool) -> Path:
    scratch = _name_scratch(path)
    try:
        if not (resume and scratch.is_dir()):
            _forget(scratch)
            if scratch.exists():
                shutil.rmtree(scratch)
        scratch.mkdir(exist_ok=True)
    except OSError as error:
        raise BundleError(_explain_unwritable(path, error)) from error
    return scratch


def _explain_unwritable(path: Path, error: OSError) -> str:
    return (
        f"nothing can be written in {path.parent} ({error.strerror or error}); "
        "choose another folder"
    )


def _move_into_place(scratch: Path, path: Path) -> None:
    retired = None
    try:
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
            os.replace(path, retired / path.name)
        os.replace(scratch, path)
    except OSError as error:
        _put_back(retired, path, scratch)
        raise BundleError(
            f"{path} could not be replaced ({error.strerror or error}) and is as it was; "
            "close the programs that use it and try again"
        ) from error
    except BaseException:
        _put_back(retired, path, scratch)
        raise
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


def _put_back(retired: Path | None, path: Path, scratch: Path) -> None:
    """Undo the first half of a replacement; what cannot be put back is never deleted."""
    if retired is None:
        return
    old = retired / path.name
    if old.exists() and scratch.exists():
        try:
            os.replace(old, path)
        except OSError as error:
            raise BundleError(
                f"{path} could not be put back ({error.strerror or error}); "
                f"it is whole in {old}: move it from there"
            ) from error
    shutil.rmtree(retired, ignore_errors=True)
