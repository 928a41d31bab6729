"""Whether all of a bundle's bytes are as they were written: found out once, and remembered.

`open_bundle` hashes small files every time. Large ones are hashed when a bundle is first loaded
at its place, and again when one of them changes. What changes without a trace in the file system,
such as a failing disk, is found by `lfm2-deploy check` and `inspect --check`, which hash everything
whenever they are asked.
"""

from __future__ import annotations

import hashlib
import time

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.checkpoint.tensor_file import identify_files
from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.remember import recall, remember

_KIND = "intact"


def ensure_intact(
    bundle: Bundle, progress: Progress = ignore_progress, again: bool = False
) -> None:
    """Hash a bundle's large files, unless they are known.

    A gigabyte takes 0.6 s where the processor has instructions for sha256, and 1.8 s where it has
    not (measured); loading finds in memory what was read for it. A first load takes about as long
    anyway, so even the impatient pay this once, and never again for a bundle exported here. Without
    it, a copy that went wrong answers wrongly: a canary of 71 tokens reaches few rows of a table.

    Args:
        bundle: what is about to be loaded.
        progress: told of the bytes done.
        again: whatever is remembered, and small files too.

    Raises:
        BundleError: naming the first file that is not as it was written.
    """
    if not again and (not bundle.large_files or recall(_KIND, _make_key(bundle)) is not None):
        return
    key = _make_key(bundle)  # before the files are read: they may change meanwhile
    bundle.verify(progress)
    remember(_KIND, key, {"when": int(time.time())})


def remember_intact(bundle: Bundle) -> None:
    """Say that a bundle was written just now, and hashed when it was."""
    if bundle.large_files:
        remember(_KIND, _make_key(bundle), {"when": int(time.time())})


def _make_key(bundle: Bundle) -> dict[str, str]:
    """The files' places, sizes and times of change, and what they must be."""
    sums = [bundle.manifest.files[name].sha256 for name in bundle.large_files]
    files = identify_files(bundle.path / name for name in bundle.large_files)
    return {"files": hashlib.sha256("\n".join([files, *sums]).encode()).hexdigest()}
