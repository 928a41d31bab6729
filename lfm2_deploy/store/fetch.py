"""A bundle from a folder or a repository -> a folder of the store, every hash checked."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_deploy.bundle import MANIFEST, Bundle, open_bundle
from lfm2_deploy.checkpoint.hub import fetch_files
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import BundleError, DiskFullError, SourceError
from lfm2_deploy.store.place import STORE_VARIABLE
from lfm2_deploy.store.sources import BundleSource
from lfm2_deploy.units import format_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A piece of a copy, after which it tells how far it is.
_COPIED_AT_ONCE = 64 * 2**20


def fetch_bundle(source: BundleSource, folder: Path, progress: Progress) -> Bundle:
    """Download or copy a bundle, and hash what came.

    Args:
        source: where from.
        folder: where to, of this manifest alone; what an interrupted download left there is gone
            on with.
        progress: told of each step.

    Raises:
        BundleError: what came is not what the manifest says; the file that is wrong is removed,
            so that it comes anew.
        SourceError: the Hub is unreachable.
        DiskFullError: there is no room.
    """
    with tell_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(source, folder)
        if source.repository:
            _download(source, folder, progress)
        else:
            _copy(source, folder, progress)
        shutil.copyfile(source.folder / MANIFEST, folder / MANIFEST)
    return _check(source, folder, progress)


@contextmanager
def tell_full_disk(folder: Path) -> Iterator[None]:
    """Say of a disk that is full what helps here.

    Raises:
        DiskFullError: the block failed for want of room.
    """
    advice = (
        f"free some space and pull it again, what is done is kept; or set {STORE_VARIABLE} to a "
        "folder on another disk"
    )
    try:
        yield
    except DiskFullError as error:  # an export's own, which speaks of an option of its own
        told = str(error).replace("free some space and go on with --resume", advice)
        raise DiskFullError(told) from error
    except (OSError, SourceError) as error:
        if not _is_full(error):
            raise
        raise DiskFullError(f"{folder} is on a disk that is full: {advice}") from error


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk, perhaps through a library's own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _require_room(source: BundleSource, folder: Path) -> None:
    """Refuse before gigabytes come.

    Raises:
        DiskFullError: the disk cannot hold what is missing yet.
    """
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    needed = sum(record.size_bytes for record in source.manifest.files.values()) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{format_bytes(needed)} are needed in {folder} and {format_bytes(free)} are free: "
            f"free some space, or set {STORE_VARIABLE} to a folder on another disk"
        )


def _download(source: BundleSource, folder: Path, progress: Progress) -> None:
    sizes = {name: record.size_bytes for name, record in source.manifest.files.items()}
    fetch_files(source.repository, source.commit, sizes, folder, progress)


def _copy(source: BundleSource, folder: Path, progress: Progress) -> None:
    """Copies, since of two links to one file neither could be trusted alone.

    A file system that can share blocks until one is written (btrfs, XFS, APFS) does.
    """
    files = source.manifest.files
    done, total = 0, sum(record.size_bytes for record in files.values())
    for name, record in files.items():
        progress(f"copying {name}", done, total)
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            _copy_file(source.folder / name, folder / name)
        except FileNotFoundError as error:
            raise BundleError(
                f"{source.folder / name} is missing: the bundle is damaged"
            ) from error
        done += record.size_bytes
    progress("copying", done, total)


def _copy_file(source: Path, target: Path) -> None:
    # Linux's own call shares blocks; shutil's does not before Python 3.14.
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError), source.open("rb") as old, target.open("wb") as new:
            while os.copy_file_range(old.fileno(), new.fileno(), _COPIED_AT_ONCE):
                pass
            if os.fstat(new.fileno()).st_size == os.fstat(old.fileno()).st_size:
                return
    shutil.copyfile(source, target)


def _check(source: BundleSource, folder: Path, progress: Progress) -> Bundle:
    where = source.repository or str(source.folder)
    try:
        bundle = open_bundle(folder)
        bundle.verify(progress)
    except BundleError as error:
        for name in source.manifest.files:
            # What is wrong comes anew next time, what is right does not.
            if f"{folder / name} is damaged" in str(error):
                (folder / name).unlink(missing_ok=True)
        what = str(error).rpartition("; ")[0].replace(f"{folder}{os.sep}", "")
        raise BundleError(
            f"what came from {where} is not what its manifest says ({what}): pull it again; where "
            "that does not help, the bundle there is damaged"
        ) from error
    return bundle
