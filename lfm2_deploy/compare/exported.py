"""Bundles made for a comparison, kept in the user's cache for the next one.

Enters: a model, targets and precisions. Leaves: folders of bundles, named as `export` names
them. How a bundle is made is a function handed in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.tensor_file import identify_files
from lfm2_deploy.compare.room import make_room
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import BundleError
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.machine import find_cache

# Of all models' bundles together.
MOST_BYTES = 60 * 10**9
# (model, folder to make, target, precision)
Export = Callable[[str, Path, str, str], object]


def find_exports() -> Path:
    """Where bundles made for comparisons are kept."""
    return find_cache() / "compared"


def export_variants(
    model: str,
    targets: Sequence[str],
    precisions: Sequence[str],
    export: Export,
    progress: Progress,
) -> list[Path]:
    """A bundle of each precision for each target; those made before are found again.

    Args:
        model: as `export` takes it.
        targets, precisions: likewise.
        export: makes a bundle.
        progress: told of downloads.

    Raises:
        Lfm2DeployError: the model cannot be opened or exported.
    """
    checkpoint = open_checkpoint(model, progress=progress)
    beside = identify_files(checkpoint.side_files.values())  # a bundle holds tokenizer and template
    key = json.dumps([checkpoint.identity, beside, version("lfm2-deploy")])
    root = find_exports() / hashlib.sha256(key.encode()).hexdigest()[:32]
    name = checkpoint.origin.name.rpartition("/")[2]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"no bundle can be kept in {root.parent} ({error.strerror or error}): export to a "
            "folder of yours and compare that, or give the cache another place (XDG_CACHE_HOME, "
            "on Windows LOCALAPPDATA)"
        ) from error
    with suppress(OSError):
        os.utime(root)
    make_room(root.parent, 0, MOST_BYTES)
    folders = []
    for target in targets:
        for precision in precisions:
            folder = root / f"{name}-{target}-{precision}"
            if not _is_good(folder):
                export(model, folder, target, precision)
            folders.append(folder)
    return folders


def tell_kept(folders: Iterable[Path]) -> str:
    """Where bundles lie that were made for a comparison, for people; "" of none."""
    places = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    return f"{places}, kept until {MOST_BYTES / 1e9:.0f} GB are full" if places else ""


def _is_good(folder: Path) -> bool:
    try:
        ensure_intact(open_bundle(folder))
    except (OSError, BundleError):
        return False
    return True
