"""Who may do what with a model of the store, between processes and threads.

    NAME+gate.lock       held for moments: while a model appears, disappears, or is entered as used
    NAME+pull.lock       held as long as somebody pulls that name
    NAME+use-PID-N.lock  held as long as somebody has it loaded

The system frees the locks of a process that was killed. A store that cannot be written has no
locks: whoever loads from it can still read, and nobody can remove.
"""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import StoreError
from lfm2_deploy.store.place import explain_unwritable, find_owner, used_of

# Files are renamed within the gate, nothing more.
_GATE_SECONDS = 30.0
_count = itertools.count()


class Hold:
    """One loaded model's entry; `release` may be called from any thread, and again."""

    def __init__(self, lock: FileLock | None = None) -> None:
        """Of a lock that is held; None where there is nothing to hold."""
        self._lock = lock

    def release(self) -> None:
        """Say that the model is not used any more."""
        lock, self._lock = self._lock, None
        if lock is not None:
            _drop(lock)

    def follow(self, user: object) -> None:
        """Release when an object is gone; at once where none can tell."""
        try:
            weakref.finalize(user, self.release)
        except TypeError:
            self.release()


def hold_model(path: Path) -> Hold:
    """Enter a bundle's folder as used, if it is a model of a store.

    Raises:
        StoreError: it was removed meanwhile.
    """
    owner = find_owner(path)
    if owner is None:
        return Hold()
    root, name = owner
    lock = _make_lock(root, f"{name}+use-{os.getpid()}-{next(_count)}")
    try:
        with gate(root, name):
            if not path.is_dir():
                raise StoreError(f"{name} was removed from the store just now: pull it again")
            lock.acquire(timeout=0)
            with suppress(OSError):
                used_of(root, name).parent.mkdir(exist_ok=True)
                used_of(root, name).touch()
    except (OSError, Timeout, _UnwritableError):
        return Hold()
    return Hold(lock)


def list_users(root: Path, name: str) -> list[int]:
    """Ids of processes that have a model loaded; entries of those that were killed are removed."""
    found = []
    for file in sorted(_folder(root).glob(f"{name}+use-*.lock")):
        lock = FileLock(file, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(int(file.name.removeprefix(f"{name}+use-").partition("-")[0]))
        except OSError:
            continue  # gone, or another user's
        else:
            _drop(lock)
    return found


@contextmanager
def gate(root: Path, name: str) -> Iterator[None]:
    """Let a model appear, disappear or be entered as used, while nobody else does.

    Raises:
        StoreError: the store cannot be written, or the gate stays closed.
    """
    lock = _make_lock(root, f"{name}+gate")
    try:
        _folder(root).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_GATE_SECONDS)
    except Timeout as error:
        raise StoreError(f"{name} is being moved by another process: try again") from error
    except OSError as error:
        raise _UnwritableError(str(explain_unwritable(root, error))) from error
    try:
        yield
    finally:
        _drop(lock)


@contextmanager
def pulling(root: Path, name: str, progress: Progress | None = None) -> Iterator[None]:
    """Keep others from pulling the same name.

    Args:
        root: the store.
        name: the model's.
        progress: told once where another process pulls it, and then waited for; None to refuse.

    Raises:
        StoreError: the store cannot be written; or, without `progress`, it is being pulled.
    """
    lock = _make_lock(root, f"{name}+pull")
    try:
        _folder(root).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if progress is None:
                raise StoreError(f"{name} is being pulled: wait until that ends") from error
            progress(f"waiting for another process that pulls {name}", 0, 0)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        raise explain_unwritable(root, error) from error
    try:
        yield
    finally:
        _drop(lock)


class _UnwritableError(StoreError):
    """A gate cannot be made where nothing can be written; who only reads goes on without."""


def _folder(root: Path) -> Path:
    return root / ".locks"


def _make_lock(root: Path, name: str) -> FileLock:
    # Released by whichever thread drops the model.
    return FileLock(_folder(root) / f"{name}.lock", thread_local=False)


def _drop(lock: FileLock) -> None:
    # Unlinked while it is held: who waits for a name that is gone begins anew, and does not get a
    # lock that nobody else can see. Windows removes it by itself, later.
    if sys.platform != "win32":
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    if sys.platform == "win32":
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
