"""Words of messages that several modules say alike."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_MOST_SUGGESTED = 3


def quote_path(path: Path) -> str:
    """A path as one word of a command that the user may paste into a shell."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def suggest(name: str, names: Iterable[str]) -> str:
    """What is said of names like one that does not exist: "; did you mean gptq?", or ""."""
    known = {other.lower(): other for other in names}
    near = get_close_matches(name.lower(), list(known), _MOST_SUGGESTED, 0.6)
    return f"; did you mean {' or '.join(known[other] for other in near)}?" if near else ""
