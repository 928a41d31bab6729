"""Which tasks there are: this package's own, a folder of the user's, and the harness's.

The harness's index takes ten seconds to build, so it is looked at only for names that are
in no folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from lfm2_deploy.errors import EvaluationError, UnknownTaskError
from lfm2_deploy.evaluation.local_data import TASK_FOLDER

_NAME = re.compile(r"^(?:task|group):\s*[\"']?([\w.-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
_MOST_SUGGESTED = 5


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task in a folder.

    Args:
        name: what `--tasks` takes.
        description: the comment in the first line of its file, or "".
        file: the YAML file.
    """

    name: str
    description: str
    file: Path


def list_local_tasks(folder: Path = TASK_FOLDER) -> list[LocalTask]:
    """Tasks and groups of a folder and what lies in it, by name; nothing is imported for it.

    Raises:
        EvaluationError: there is no such folder, or it holds no task.
    """
    if not folder.is_dir():
        raise EvaluationError(f"--task-folder {folder}: there is no such folder")
    found = []
    for file in sorted(folder.glob("**/*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        first = text.partition("\n")[0]
        comment = first.removeprefix("#").strip() if first.startswith("#") else ""
        found += [LocalTask(name, comment, file) for name in _NAME.findall(text)]
    if not found:
        raise EvaluationError(
            f"--task-folder {folder} holds no task: expected .yaml files with a line 'task: NAME', "
            "as lm-evaluation-harness describes them"
        )
    return sorted(found, key=lambda task: task.name)


def choose_names(asked: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names asked for, where `*` and `?` stand for any characters; each once.

    Raises:
        EvaluationError: one is unknown; the nearest are told.
    """
    names = sorted(known)
    chosen: list[str] = []
    for name in asked:
        matching = [other for other in names if fnmatchcase(other, name)]
        if not matching:
            near = suggest(name, names)
            hint = f"did you mean {', '.join(near)}?" if near else "see lfm2-deploy eval --list"
            raise UnknownTaskError(f"there is no task {name!r}: {hint}")
        chosen += matching
    return list(dict.fromkeys(chosen))


def suggest(name: str, names: Sequence[str]) -> list[str]:
    """Names like one that does not exist, likeliest first."""
    near = get_close_matches(name, names, _MOST_SUGGESTED, 0.7)
    inside = [other for other in names if name.lower() in other.lower()]
    return list(dict.fromkeys([*near, *sorted(inside, key=len)]))[:_MOST_SUGGESTED]
