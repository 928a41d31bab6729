"""Folders of a cache that make room for others."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path


def make_room(root: Path, size: int, most: int) -> None:
    """Remove what was used longest ago, until so many bytes fit.

    Args:
        root: its folders are the cache's entries; hidden ones are left alone.
        size: bytes that shall fit.
        most: bytes of all entries together.
    """
    held = []
    for folder in root.iterdir():
        with suppress(OSError):  # another process removed it
            if folder.is_dir() and not folder.name.startswith("."):
                taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                held.append((folder.stat().st_mtime_ns, taken, folder))
    total = size + sum(taken for _, taken, _ in held)
    for _, taken, folder in sorted(held):
        if total <= most:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= taken
