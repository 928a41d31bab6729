"""A bundle: one folder with everything that running a model needs.

    model.onnx            the graph, weights by reference
    model.onnx.data       the weights
    tokenizer.json ...    tokenizer, chat template, generation defaults, config.json
    genai_config.json     what onnxruntime-genai reads
    manifest.json         what this is, how it was made, sizes and sha256 of all the rest

A bundle is written beside its place and renamed when whole, so a folder with a
manifest is a finished one. Knows nothing of how graphs are made or run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import Origin, Progress, ignore_progress
from lfm2_deploy.errors import BundleError, ConfigError
from lfm2_deploy.states import StateSpec

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
GENERATION = "generation_config.json"
# Files up to this size are hashed whenever a bundle is opened; larger ones on request.
_HASHED_AT_OPEN = 8 * 2**20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """How a tensor (or, with a `*`, each expert's) was stored, and why."""

    name: str
    bits: int
    group: int
    reason: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and hash of one file of the bundle."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json; see the module's docstring for the files it speaks of.

    `notes` say what the export assumed that the checkpoint does not say.
    """

    schema_version: int
    model: str
    origin: Origin
    target: str
    runtime: str
    precision: str
    context_length: int
    config: Mapping[str, Any]
    states: tuple[StateSpec, ...]
    quantization: tuple[StoredTensor, ...]
    made_with: Mapping[str, str]
    notes: tuple[str, ...]
    files: Mapping[str, FileRecord]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Args:
        path: the folder.
        manifest: its manifest.
        config: the model's config.
    """

    path: Path
    manifest: Manifest
    config: Lfm2Config

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.path / GRAPH

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(record.size_bytes for record in self.manifest.files.values())

    def verify(self, progress: Progress = ignore_progress) -> None:
        """Hash every file.

        Raises:
            BundleError: naming the first file that is not as it was written.
        """
        done = 0
        for name, record in self.manifest.files.items():
            progress(f"checking {name}", done, self.size_bytes)
            _check_hash(self.path, name, record)
            done += record.size_bytes
        progress("checked", done, self.size_bytes)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle; sizes of all files and hashes of the small ones are checked.

    Raises:
        BundleError: it is absent, of another schema, or a file is missing or damaged.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    for name, record in manifest.files.items():
        _check_size(folder, name, record)
        if record.size_bytes <= _HASHED_AT_OPEN:
            _check_hash(folder, name, record)
    return Bundle(folder, manifest, _parse_own_config(folder, manifest))


def _parse_own_config(folder: Path, manifest: Manifest) -> Lfm2Config:
    try:
        return parse_config(manifest.config)
    except (AttributeError, ConfigError) as error:
        raise BundleError(
            f"{folder / MANIFEST} is damaged (its config: {error}); export the model again"
        ) from error


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        what = "is not a bundle (no manifest.json)" if folder.exists() else "does not exist"
        raise BundleError(f"{folder} {what}: make one with `lfm2-deploy export MODEL {folder}`")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is damaged ({error!r}); export the model again") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this package reads {SCHEMA_VERSION}; "
            "export the model again, or install the version that wrote it"
        )
    try:
        return _parse_manifest(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} is damaged ({error!r}); export the model again") from error


def _parse_manifest(raw: dict[str, Any]) -> Manifest:
    return Manifest(
        **{
            **raw,
            "origin": Origin(**raw["origin"]),
            "states": tuple(StateSpec(**{**s, "shape": tuple(s["shape"])}) for s in raw["states"]),
            "notes": tuple(raw["notes"]),
            "quantization": tuple(StoredTensor(**t) for t in raw["quantization"]),
            "files": {name: FileRecord(**record) for name, record in raw["files"].items()},
        }
    )


def _check_size(folder: Path, name: str, record: FileRecord) -> None:
    file = folder / name
    size = file.stat().st_size if file.is_file() else None
    if size != record.size_bytes:
        seen = "missing" if size is None else f"{size:,} bytes"
        raise BundleError(
            f"{file} is damaged: {seen}, expected {record.size_bytes:,} bytes; "
            "copy or export the bundle again"
        )


def _check_hash(folder: Path, name: str, record: FileRecord) -> None:
    _check_size(folder, name, record)
    if _hash(folder / name) != record.sha256:
        raise BundleError(
            f"{folder / name} is damaged: its sha256 is not the manifest's; "
            "copy or export the bundle again"
        )


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing_bundle(path: Path, overwrite: bool) -> Iterator[Path]:
    """A scratch folder that becomes the bundle `path` when the block ends well.

    The block must call `seal` on the folder. When it fails, the scratch folder is
    removed and `path` is as it was.

    Raises:
        BundleError: something is at `path` that may not be replaced.
    """
    check_destination(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield scratch
        if not (scratch / MANIFEST).is_file():
            raise BundleError(f"{path} was not finished; nothing was kept")
        scratch.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_destination(path: Path, overwrite: bool) -> None:
    """Refuse a place that holds something which may not be replaced.

    Raises:
        BundleError: a bundle is there and `overwrite` is false, or anything else is.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not _is_bundle(path):
        raise BundleError(f"{path} exists and is not a bundle; choose another folder")
    if not overwrite:
        raise BundleError(f"{path} already holds a bundle; pass --overwrite to replace it")


def _is_bundle(path: Path) -> bool:
    """Whether a folder is one of ours, perhaps damaged or of another version."""
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A bundle whose manifest is damaged still has its graph beside it.
        return (path / MANIFEST).is_file() and (path / GRAPH).is_file()
    return isinstance(raw, dict) and {"schema_version", "quantization"} <= raw.keys()


def _move_into_place(scratch: Path, path: Path) -> None:
    retired = None
    if path.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
        os.replace(path, retired / path.name)
    try:
        os.replace(scratch, path)
    except OSError:
        if retired:
            os.replace(retired / path.name, path)
            retired.rmdir()
        raise
    if retired:
        shutil.rmtree(retired, ignore_errors=True)


def seal(folder: Path, manifest: Manifest, progress: Progress = ignore_progress) -> None:
    """Hash every file in `folder` and write manifest.json.

    Args:
        folder: the scratch folder, complete but for its manifest.
        manifest: all but `files`, which is filled in here.
    """
    names = sorted(f.name for f in folder.iterdir())
    files = {}
    for number, name in enumerate(names):
        progress(f"hashing {name}", number, len(names))
        files[name] = FileRecord((folder / name).stat().st_size, _hash(folder / name))
    progress("hashed", len(names), len(names))
    record = {**asdict(manifest), "files": {n: asdict(f) for n, f in files.items()}}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
