"""Folders that hold a certain file, and folders on the way to one, for shell completion.

Enters a path as far as it is typed; leaves paths in the same spelling ("~", "./"), those on the
way with a separator at their end. It only lists folders, a bounded number of entries of them:
this runs while somebody waits for Tab.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Entries of folders that are looked at in all: some 10 ms on a local disk.
_MOST_ENTRIES = 4_000
# How far below a folder a bundle may lie for the folder to be on the way.
_DEPTH = 3
# What is nobody's folder of models, and large.
_SKIPPED = {"node_modules", "__pycache__", "site-packages"}


def find_folders(
    incomplete: str, files: Sequence[str], *, without: Sequence[str] = ()
) -> list[str]:
    """Paths that begin with the word and are folders with one of the files, or lead to some.

    A folder that leads to others and is the only one is entered at once, so that a shell which
    ends a single match with a space ends it behind a folder that is meant.

    Args:
        incomplete: the word as far as it is typed.
        files: names; a folder that holds any of them is meant.
        without: a folder that holds any of these is not.
    """
    search = _Search(tuple(files), tuple(without))
    found = search.list_matches(incomplete)
    while len(found) == 1 and _ends_in_separator(found[0]) and found[0] != incomplete:
        inside = search.list_matches(found[0])
        if not inside or inside == found:
            break
        found = inside
    return found


@dataclass(slots=True)
class _Search:
    files: tuple[str, ...]
    without: tuple[str, ...]
    left: int = field(default_factory=lambda: _MOST_ENTRIES)

    def list_matches(self, incomplete: str) -> list[str]:
        if os.path.basename(incomplete) in (".", ".."):
            incomplete += os.sep
        shown, begun = os.path.split(incomplete)
        shown = incomplete[: len(incomplete) - len(begun)]
        folder = os.path.expanduser(shown) or os.curdir
        if not begun and shown and self.is_meant(folder):
            return [incomplete]
        found = []
        for entry in self.list_folders(folder):
            if not entry.name.startswith(begun) or (entry.name.startswith(".") and not begun):
                continue
            if self.is_meant(entry.path):
                found.append(shown + entry.name)
            elif self.leads_to_some(entry.path, _DEPTH):
                found.append(shown + entry.name + os.sep)
        return sorted(found)

    def is_meant(self, folder: str) -> bool:
        def has(name: str) -> bool:
            return os.path.isfile(os.path.join(folder, name))

        return any(map(has, self.files)) and not any(map(has, self.without))

    def leads_to_some(self, folder: str, depth: int) -> bool:
        """Whether a folder below is meant; True as well where looking would take too long."""
        below = [entry.path for entry in self.list_folders(folder) if entry.name[0] != "."]
        if self.left <= 0 or any(map(self.is_meant, below)):
            return True
        return depth > 1 and any(self.leads_to_some(path, depth - 1) for path in below)

    def list_folders(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.left -= 1
                    if self.left <= 0:
                        return
                    if entry.name not in _SKIPPED and entry.is_dir():
                        yield entry
        except OSError:
            return


def _ends_in_separator(path: str) -> bool:
    return path.endswith((os.sep, os.altsep or os.sep))
