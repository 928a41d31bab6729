"""A checkpoint -> what its logits depend on, wherever its files lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lfm2_deploy.checkpoint.folder import FolderCheckpoint
from lfm2_deploy.checkpoint.tensor_file import identify_files
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.remember import recall, remember

_KIND = "weights"


def identify_content(checkpoint: Checkpoint, progress: Progress) -> str:
    """The same text for two copies of one checkpoint; of an adapter's, for one place only.

    Files are read once, and their checksums are remembered until they change.

    Args:
        checkpoint: a folder's weights, or others that are told apart by `Checkpoint.identity`.
        progress: told of files that are read.

    Raises:
        OSError: a file cannot be read.
    """
    if not isinstance(checkpoint, FolderCheckpoint):
        return checkpoint.identity
    files = sorted({piece.tensor.file.resolve() for piece in checkpoint.pieces.values()})
    sums = []
    for number, file in enumerate(files):
        progress("reading the weights once, to know them again", number, len(files))
        sums.append(_sum(file))
    return json.dumps([sorted(sums), checkpoint.raw_config], sort_keys=True)


def _sum(file: Path) -> str:
    key = {"file": identify_files([file])}
    known = (recall(_KIND, key) or {}).get("sha256")
    if isinstance(known, str):
        return known
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    remember(_KIND, key, {"sha256": found})
    return found
