"""References in the user's cache, so that a second comparison with one begins at once.

A reference is found again by what its logits depend on: checkpoint, tokens, protocol and
versions. It is written beside its place and renamed when whole, and checked when it is read;
one that is damaged is made anew. The least recently used make room.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

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
from lfm2_deploy.errors import DiskFullError
from lfm2_deploy.machine import find_cache

# Of all references together.
MOST_BYTES = 20 * 10**9
# Raised where the reference's arithmetic or the files' layout change.
_GENERATION = 2
_JUDGED = "judged.json"


@dataclass(frozen=True, slots=True)
class Key:
    """What tells a reference from others: a digest, and words for people."""

    digest: str
    about: str


def make_key(identity: str, versions: Sequence[str], windows: Windows, about: str) -> Key:
    """The key of a reference.

    Args:
        identity: of the weights, as `Checkpoint.identity` gives it.
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
    if not folder.is_dir():
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
    """
    root = find_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / key.digest
    size = measure_reference(windows, vocab_size)
    with FileLock(f"{folder}.lock"):
        found = find_reference(key, progress)  # another process may have made it meanwhile
        if found is not None:
            return found
        make_room(root, size, MOST_BYTES)
        _check_room(root, size)
        scratch = root / f".{key.digest}.partial"
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

    Raises:
        DiskFullError: there is no room.
    """
    root = find_folder()
    root.mkdir(parents=True, exist_ok=True)
    _check_room(root, measure_reference(windows, vocab_size))
    with tempfile.TemporaryDirectory(prefix=".once-", dir=root) as name:
        folder = Path(name)
        write_reference(folder, windows, answer(), vocab_size, "")
        yield _reopen(folder)


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
