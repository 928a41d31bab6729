"""What was found out once and stays true until something it depends on changes.

Enters: a kind of finding, and a key: all that the finding depends on, such as a device and its
driver. Leaves: what was found, in this process or another, by this version of the package. Files
are written aside and renamed; one that is damaged is as good as none, and a folder that cannot be
written is no error: then it is found out again. With LFM2_DEPLOY_REMEMBER=0 nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lfm2_deploy.entry import PACKAGE
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.machine import find_cache

Key = Mapping[str, str]
Finding = Mapping[str, Any]

_SWITCH = "LFM2_DEPLOY_REMEMBER"
_SUFFIX = ".json"
# So many of a kind are kept; bundles come and go, and so do drivers.
_MOST = 512


def remember(kind: str, key: Key, finding: Finding) -> None:
    """Keep a finding for whoever asks with the same key.

    Args:
        kind: a word for a file name.
        key: what it depends on.
        finding: what JSON can hold.
    """
    if not _is_on():
        return
    key = _complete(key)
    file = _name_file(kind, key)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                json.dump({"key": dict(key), "finding": dict(finding)}, stream)
            os.replace(scratch, file)
        except OSError:
            Path(scratch).unlink(missing_ok=True)
            raise
        _drop_oldest(file.parent)


def recall(kind: str, key: Key) -> dict[str, Any] | None:
    """What was remembered under exactly this key; None where nothing was."""
    if not _is_on():
        return None
    key = _complete(key)
    found = _read(_name_file(kind, key))
    return found[1] if found is not None and found[0] == key else None


def list_remembered(kind: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """All findings of a kind with their keys, in no order of meaning."""
    with contextlib.suppress(OSError):
        for file in sorted(_choose_folder(kind).glob(f"*{_SUFFIX}")):
            found = _read(file)
            if found is not None:
                yield found


def _is_on() -> bool:
    return os.environ.get(_SWITCH) != "0"


def _complete(key: Key) -> dict[str, str]:
    """With this package's version: another one may look otherwise."""
    try:
        own = version(PACKAGE)
    except PackageNotFoundError:  # run from its sources, not installed
        own = ""
    return {**key, "package": own}


def _read(file: Path) -> tuple[dict[str, str], dict[str, Any]] | None:
    try:
        raw = read_json_object(file, BundleError, "it is found out again")
    except BundleError:
        return None
    key, finding = raw.get("key"), raw.get("finding")
    return (key, finding) if isinstance(key, dict) and isinstance(finding, dict) else None


def _choose_folder(kind: str) -> Path:
    return find_cache() / "remembered" / kind


def _name_file(kind: str, key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return _choose_folder(kind) / f"{digest[:32]}{_SUFFIX}"


def _drop_oldest(folder: Path) -> None:
    files = list(folder.glob(f"*{_SUFFIX}"))
    if len(files) > _MOST:
        files.sort(key=lambda file: file.stat().st_mtime)
        for file in files[: len(files) - _MOST]:
            file.unlink(missing_ok=True)
