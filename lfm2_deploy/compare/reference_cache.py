"""References in the user's cache, so that a second comparison with one begins at once.

A reference is found again by what its logits depend on: checkpoint, tokens, protocol and
versions. It is written beside its place and renamed when whole, and checked when it is read;
one that is damaged is made anew. The least recently used make room. While one is written,
and while one that is not kept is used, its process holds a lock; what a killed process left
is known by a lock that nobody holds:

    DIGEST/  DIGEST.lock  .DIGEST.partial/      kept
    .once-ID/  .once-ID.lock                    for one comparison
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lfm2_deploy.compare.greedy import Judgement, Written
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.reference import (
    StoredReference,
    list_requests,
    measure_reference,
    open_reference_folder,
    write_reference,
)
from lfm2_deploy.compare.room import make_room
from lfm2_deploy.compare.scorer import Scored
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import DiskFullError, GenerationError
from lfm2_deploy.machine import find_cache

# Of all references together.
MOST_BYTES = 20 * 10**9
# Raised where the reference's arithmetic or the files' layout change.
_GENERATION = 3
_JUDGED = "judged.json"
_ONCE, _PARTIAL = ".once-", ".partial"


@dataclass(frozen=True, slots=True)
class Key:
    """What tells a reference from others: a digest, and words for people."""

    digest: str
    about: str


def make_key(identity: str, versions: Sequence[str], windows: Windows, about: str) -> Key:
    """The key of a reference.

    Args:
        identity: of the weights, as `identify_content` gives it.
        versions: of what computes.
        windows: what is read.
        about: what it is, for people.
    """
    rows = [[request.tokens, request.first] for request in list_requests(windows)]
    record = [_GENERATION, identity, list(versions), rows]
    digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return Key(digest[:32], about)


def find_folder() -> Path:
    """Where references are kept."""
    return find_cache() / "references"


def find_reference(key: Key, progress: Progress) -> StoredReference | None:
    """A reference that an earlier comparison kept; a damaged one is removed."""
    folder = find_folder() / key.digest
    if not os.path.isdir(folder):  # of a folder that cannot be looked into, False as well
        return None
    found = open_reference_folder(folder, progress)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(folder)
    return found


def keep_reference(
    key: Key,
    windows: Windows,
    vocab_size: int,
    answer: Callable[[], Iterator[Scored]],
    progress: Progress,
) -> StoredReference:
    """Compute a reference and keep it.

    Args:
        key: where it is found again.
        windows: what is read.
        vocab_size: V.
        answer: answers `list_requests`.
        progress: told of checking.

    Raises:
        DiskFullError: there is no room.
        GenerationError: nothing can be written in the cache.
    """
    root = find_folder()
    try:
        _check_writable(root)
    except OSError as error:
        raise GenerationError(
            f"nothing can be kept in {root} ({error.strerror or error}): add --no-cache to keep "
            "nothing, or give the cache another place (XDG_CACHE_HOME, on Windows LOCALAPPDATA)"
        ) from error
    sweep(root)
    folder = root / key.digest
    size = measure_reference(windows, vocab_size)
    with FileLock(f"{folder}.lock"):
        found = find_reference(key, progress)  # another process may have made it meanwhile
        if found is not None:
            return found
        make_room(root, size, MOST_BYTES)
        _check_room(root, size)
        scratch = root / f".{key.digest}{_PARTIAL}"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
            write_reference(scratch, windows, answer(), vocab_size, key.about)
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return _reopen(folder)


@contextmanager
def keep_for_now(
    windows: Windows, vocab_size: int, answer: Callable[[], Iterator[Scored]]
) -> Iterator[StoredReference]:
    """As `keep_reference`, for this comparison only: the files go when the context ends.

    They lie in the cache's folder, as the system's temporary one may be in memory; there only
    where nothing can be written in the cache.

    Raises:
        DiskFullError: there is no room.
    """
    with _make_folder_for_now() as folder:
        _check_room(folder, measure_reference(windows, vocab_size))
        write_reference(folder, windows, answer(), vocab_size, "")
        with closing(_reopen(folder)) as reference:
            yield reference


@contextmanager
def _make_folder_for_now() -> Iterator[Path]:
    """An empty folder that goes when the context ends."""
    root = find_folder()
    try:
        _check_writable(root)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="lfm2-deploy-") as name:
            yield Path(name)
        return
    sweep(root)
    folder = root / f"{_ONCE}{uuid.uuid4().hex}"
    # The lock first: a folder that nobody locks is removed by others.
    with _held(folder.with_name(f"{folder.name}.lock")):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_writable(root: Path) -> None:
    """Make a folder where there is none, and see whether it takes files; OSError where not."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root):
        pass


def sweep(root: Path) -> None:
    """Remove what processes that were killed left in a folder of references."""
    for folder in root.iterdir():
        name = folder.name
        if name.endswith(".lock"):
            continue
        with suppress(OSError, Timeout):  # removed meanwhile, or in use
            if name.startswith(_ONCE):
                with _held(root / f"{name}.lock"):
                    shutil.rmtree(folder, ignore_errors=True)
            elif name.endswith(_PARTIAL):
                # Of a reference that is kept; whoever makes it again needs this lock too.
                with FileLock(root / f"{name[1:].removesuffix(_PARTIAL)}.lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """A lock of one owner, whose file goes with it; Timeout where another process holds it."""
    with FileLock(file, timeout=0):
        try:
            yield
        finally:
            # While it is held, and names are used once. Windows removes it by itself.
            if sys.platform != "win32":
                file.unlink(missing_ok=True)


def _reopen(folder: Path) -> StoredReference:
    found = open_reference_folder(folder, lambda what, done, total: None)
    if found is None:
        raise DiskFullError(f"what was just written to {folder} cannot be read: check the disk")
    return found


def _check_room(root: Path, size: int) -> None:
    free = shutil.disk_usage(root).free
    if size > free:
        raise DiskFullError(
            f"the reference takes {size / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB free: "
            "free some, or compare on fewer --chunks"
        )


def read_judgements(reference: StoredReference, written: Written) -> list[Judgement] | None:
    """What the reference said to the same text before; None where it was never asked."""
    try:
        known = json.loads((reference.folder / _JUDGED).read_text(encoding="utf-8"))
        said = [Judgement(*values) for values in known[_name(written)]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if len(said) == len(written.tokens) else None


def keep_judgements(
    reference: StoredReference, judged: Sequence[tuple[Written, Sequence[Judgement]]]
) -> None:
    """Keep what the reference said; where that fails, nothing is lost but time."""
    file = reference.folder / _JUDGED
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    known |= {_name(text): [list(asdict(j).values()) for j in said] for text, said in judged}
    scratch = file.with_suffix(".partial")
    with suppress(OSError):
        scratch.write_text(json.dumps(known), encoding="utf-8")
        os.replace(scratch, file)


def _name(written: Written) -> str:
    return hashlib.sha256(json.dumps([written.prompt, written.tokens]).encode()).hexdigest()
