"""manifest.json of a bundle: what it says, and what is believed of it.

A bundle may come from anywhere, so nothing in its manifest is taken on trust: types,
file names, states and sizes are checked before anything acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import BundleError, ConfigError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.states import StateSpec, list_states

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
GENERATION = "generation_config.json"

_AGAIN = "export the model again"


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
    """What a bundle is and how it was made.

    Args:
        schema_version: of this record's form.
        model: the origin's name.
        origin: where the checkpoint came from.
        target: what it was lowered for.
        runtime: which runtime runs it.
        precision: what the user asked for.
        context_length: most tokens a row may hold.
        config: config.json as it was found.
        states: the graph's states, in order.
        quantization: how each tensor was stored.
        made_with: package -> version.
        notes: what the export assumed that the checkpoint does not say.
        files: name -> size and hash of every other file.
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


def read_manifest(folder: Path) -> tuple[Manifest, Lfm2Config]:
    """Read and check a bundle's manifest; its files are not looked at.

    Raises:
        BundleError: it is absent, of another schema, or damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        what = "is not a bundle (no manifest.json)" if folder.exists() else "does not exist"
        raise BundleError(f"{folder} {what}: make one with `lfm2-deploy export MODEL {folder}`")
    raw = read_json_object(file, BundleError, f"it is damaged; {_AGAIN}")
    if "schema_version" not in raw:
        raise BundleError(f"{file} is damaged (no schema_version); {_AGAIN}")
    version = raw["schema_version"]
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this package reads {SCHEMA_VERSION}; "
            "export the model again, or install the version that wrote it"
        )
    try:
        manifest = _parse(raw)
        config = parse_config(manifest.config)
        _check(manifest, config)
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"{file} is damaged ({error!r}); {_AGAIN}") from error
    return manifest, config


def _parse(raw: dict[str, Any]) -> Manifest:
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


def _check(manifest: Manifest, config: Lfm2Config) -> None:
    """Raise ValueError for what has the right form and cannot be right."""
    for name in ("model", "target", "runtime", "precision"):
        if not isinstance(getattr(manifest, name), str):
            raise ValueError(f"{name} is {getattr(manifest, name)!r}, expected text")
    context, longest = manifest.context_length, config.max_position_embeddings
    if type(context) is not int or not 1 <= context <= longest:
        raise ValueError(f"context_length is {context!r}, expected 1 to {longest}")
    if manifest.states != list_states(config):
        raise ValueError("its states are not those of its config")
    missing = {GRAPH, WEIGHTS} - manifest.files.keys()
    if missing:
        raise ValueError(f"it lists no {min(missing)}")
    for name, record in manifest.files.items():
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is not a plain file name")
        if type(record.size_bytes) is not int or record.size_bytes < 0:
            raise ValueError(f"size of {name} is {record.size_bytes!r}")
        if not isinstance(record.sha256, str):
            raise ValueError(f"hash of {name} is {record.sha256!r}")


def is_plain_name(name: str) -> bool:
    """Whether a name means a file right inside a folder, on every system."""
    return name not in ("", ".", "..") and "/" not in name and PureWindowsPath(name).name == name
