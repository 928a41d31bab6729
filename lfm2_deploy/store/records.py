"""Where models of the store came from: a small file each, beside them."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.store.place import record_of

EXPORTED, BUNDLE = "exported", "bundle"


@dataclass(frozen=True, slots=True)
class Record:
    """Where a model came from.

    Args:
        source: what was pulled: a Hub id, a folder's full path, "synthetic:NAME" or "demo".
        revision: the branch, tag or commit that was asked for; "" for none.
        kind: "exported" here, or a "bundle" as it was found.
        target, precision: the bundle's.
        added: when, in seconds since 1970.
        damaged: what a check found wrong with it; "" for nothing.
    """

    source: str
    revision: str
    kind: str
    target: str
    precision: str
    added: float
    damaged: str = ""


def read_record(root: Path, name: str) -> Record | None:
    """Where a model came from; None where that is not known."""
    try:
        raw = read_json_object(record_of(root, name), BundleError, "it is done without")
        texts = ("source", "revision", "kind", "target", "precision", "damaged")
        return Record(added=float(raw["added"]), **{key: str(raw.get(key, "")) for key in texts})
    except (BundleError, KeyError, TypeError, ValueError):
        return None


def write_record(root: Path, name: str, record: Record) -> None:
    """Keep where a model came from."""
    file = record_of(root, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            json.dump(asdict(record), stream)
        os.replace(scratch, file)
    except OSError:
        Path(scratch).unlink(missing_ok=True)
        raise


def make_record(source: str, revision: str, kind: str, bundle: Bundle) -> Record:
    """The record of a bundle that comes now."""
    manifest = bundle.manifest
    return Record(source, revision, kind, manifest.target, manifest.precision, time.time())
