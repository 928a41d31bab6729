"""A bundle: one folder with everything that running a model needs.

    model.onnx            the graph, weights by reference (of an NPU several graphs; of
    model.onnx.data       OpenVINO openvino_model.xml and .bin instead)
    tokenizer.json ...    tokenizer, chat template, generation defaults, config.json
    canary.json           short prompts, and what their logits must be
    genai_config.json     what onnxruntime-genai reads
    manifest.json         what this is, how it was made, sizes and sha256 of all the rest
    README.md             the same for people: a model card (`card/`); not hashed, may be edited
    measurements.json     what was measured of it later, for the card; likewise

A folder with a manifest is a finished bundle; `unfinished.py` sees to that. Knows
nothing of how graphs are made or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import (
    CANARY,
    CARD,
    CONFIG,
    EMBED_FILE,
    GENERATION,
    GRAPH,
    MANIFEST,
    MEASUREMENTS,
    SCHEMA_VERSION,
    WEIGHTS,
    BlobRecord,
    FileRecord,
    GraphRecord,
    Manifest,
    ReaderRecord,
    StoredTensor,
    read_manifest,
)

__all__ = [
    "CANARY",
    "CARD",
    "DEMO_SOURCE",
    "EMBED_FILE",
    "GENERATION",
    "GRAPH",
    "LATER_FILES",
    "MANIFEST",
    "MEASUREMENTS",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "BlobRecord",
    "Bundle",
    "FileRecord",
    "GraphRecord",
    "Manifest",
    "ReaderRecord",
    "StoredTensor",
    "check_destination",
    "is_bundle",
    "list_files",
    "list_foreign",
    "open_bundle",
    "seal",
]

# Files up to this size are hashed whenever a bundle is opened; for larger ones see `intact.py`.
_HASHED_AT_OPEN = 8 * 2**20
_HASHED_AT_ONCE = 8 * 2**20
# Written last, beside the manifest: which checkpoint the demo's bundle was made from.
DEMO_SOURCE = "demo_source.json"
# What this package itself may put into a bundle after its manifest is written.
LATER_FILES = frozenset({MANIFEST, DEMO_SOURCE, CARD, MEASUREMENTS})
# Every name an export may give a file: what a bundle with a damaged manifest may hold.
_POSSIBLE_FILES = LATER_FILES | {
    GRAPH,
    WEIGHTS,
    CONFIG,
    GENERATION,
    CANARY,
    EMBED_FILE,
    *(f"{name}.onnx" for name in ("embed", "prefill", "decode", "head", "routers")),
    "genai_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model_genai_legacy.onnx",
}
_POSSIBLE_PATTERNS = (
    "openvino_*.xml",
    "openvino_*.bin",
    f"{WEIGHTS}_*",
    *(f"{name}.*.onnx" for name in ("prefill", "decode", "routers", "experts")),
    "*.blob",
    "*.blob.onnx",
    "*.blob_qnn.bin",
    "onnx/model*.onnx",
    "onnx/model*.onnx_data",
)
# What a bundle of any target has one of.
_GRAPHS = (GRAPH, "openvino_model.xml", "decode.onnx", "decode.0.onnx")


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
        """The file of a bundle's first graph."""
        return self.path / self.manifest.graphs[0].file

    @property
    def weights(self) -> Path:
        """The file that ONNX graphs read their weights from."""
        return self.path / self.manifest.weights

    @property
    def identity(self) -> str:
        """A digest of all graphs and weights: what computes the same has the same."""
        files = self.manifest.files
        graphs = {graph.file for graph in self.manifest.graphs}
        names = sorted(graphs | set(self.manifest.weight_files))
        return hashlib.sha256("".join(files[name].sha256 for name in names).encode()).hexdigest()

    def find_graph(self, name: str) -> Path:
        """The file of the graph of that name.

        Raises:
            BundleError: there is none.
        """
        for graph in self.manifest.graphs:
            if graph.name == name:
                return self.path / graph.file
        raise BundleError(f"{self.path} has no graph {name!r}; export the model again")

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(record.size_bytes for record in self.manifest.files.values())

    @property
    def large_files(self) -> tuple[str, ...]:
        """Names of files whose hashes `open_bundle` leaves unchecked."""
        files = self.manifest.files.items()
        return tuple(sorted(n for n, record in files if record.size_bytes > _HASHED_AT_OPEN))

    def verify(self, progress: Progress = ignore_progress) -> None:
        """Hash every file.

        Args:
            progress: told of the bytes done.

        Raises:
            BundleError: naming the first file that is not as it was written.
        """
        done, total = 0, self.size_bytes
        for name, record in self.manifest.files.items():
            _check_hash(self.path, name, record, _count(progress, "checking", done, total))
            done += record.size_bytes
        progress("checking", done, total)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle; sizes of all files and hashes of the small ones are checked.

    Raises:
        BundleError: it is absent, of another schema, or a file is missing or damaged.
    """
    folder = Path(path)
    manifest, config = read_manifest(folder)
    for name, record in manifest.files.items():
        _check_size(folder, name, record)
        if record.size_bytes <= _HASHED_AT_OPEN:
            _check_hash(folder, name, record)
    return Bundle(folder, manifest, config)


def _check_size(folder: Path, name: str, record: FileRecord) -> None:
    file = folder / name
    size = file.stat().st_size if file.is_file() else None
    if size != record.size_bytes:
        seen = "missing" if size is None else f"{size:,} bytes"
        raise BundleError(
            f"{file} is damaged: {seen}, expected {record.size_bytes:,} bytes; "
            "copy or export the bundle again"
        )


def _check_hash(
    folder: Path, name: str, record: FileRecord, tell: Callable[[int], object] = lambda n: None
) -> None:
    _check_size(folder, name, record)
    if _hash(folder / name, tell) != record.sha256:
        raise BundleError(
            f"{folder / name} is damaged: its sha256 is not the manifest's; "
            "copy or export the bundle again"
        )


def _count(progress: Progress, what: str, before: int, total: int) -> Callable[[int], None]:
    """What tells `progress` of one file's bytes, after those of the files before it."""

    def tell(done: int) -> None:
        progress(what, before + done, total)

    return tell


def _hash(file: Path, tell: Callable[[int], object]) -> str:
    """sha256 of a file; `tell` hears how many bytes are done."""
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while piece := stream.read(_HASHED_AT_ONCE):
            digest.update(piece)
            done += len(piece)
            tell(done)
    return digest.hexdigest()


def check_destination(path: Path, overwrite: bool) -> None:
    """Refuse a place that holds something which may not be replaced.

    Raises:
        BundleError: a bundle is there and `overwrite` is false, or anything else is.
    """
    here = Path.cwd().resolve()
    if path.resolve() in (here, *here.parents):
        raise BundleError(f"{path} is where you are or above it; choose a folder below")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_bundle(path):
        raise BundleError(f"{path} exists and is not a bundle; choose another folder")
    if not overwrite:
        raise BundleError(f"{path} already holds a bundle; pass --overwrite to replace it")
    foreign = list_foreign(path)
    if foreign:
        raise BundleError(
            f"{path} also holds {foreign[0]}, which is not part of the bundle and would be lost; "
            "move it away, or choose another folder"
        )


def is_bundle(path: Path) -> bool:
    """Whether a folder is one of ours, perhaps damaged or of another version."""
    try:
        raw = read_json_object(path / MANIFEST, BundleError, "")
    except BundleError:
        # A bundle whose manifest is damaged still has its graph beside it.
        return (path / MANIFEST).is_file() and any((path / name).is_file() for name in _GRAPHS)
    return {"schema_version", "quantization"} <= raw.keys()


def list_foreign(path: Path) -> list[str]:
    """Names in a bundle's folder that do not belong to it."""
    try:
        files = read_json_object(path / MANIFEST, BundleError, "").get("files")
    except BundleError:
        files = None
    known = LATER_FILES | files.keys() if isinstance(files, dict) else None
    found = []
    for entry in path.iterdir():
        holds_files = entry.is_dir() and _holds_files(entry.name, known)
        for place in entry.iterdir() if holds_files else [entry]:
            name = place.relative_to(path).as_posix()
            if place.is_dir() or not _belongs(name, known):
                found.append(name)
    return sorted(found)


def list_files(folder: Path) -> list[Path]:
    """Every file of a bundle's folder and of the folders right inside it, in order of names."""
    inside = [entry for entry in folder.iterdir() if entry.is_dir()]
    every = [entry for place in (folder, *inside) for entry in place.iterdir()]
    return sorted(entry for entry in every if entry not in inside)


def _belongs(name: str, known: Collection[str] | None) -> bool:
    if known is not None:
        return name in known
    return name in _POSSIBLE_FILES or any(fnmatch(name, pattern) for pattern in _POSSIBLE_PATTERNS)


def _holds_files(folder: str, known: Collection[str] | None) -> bool:
    """Whether some of a bundle's files lie in a folder of that name."""
    return any(file.startswith(f"{folder}/") for file in known or _POSSIBLE_PATTERNS)


def seal(folder: Path, manifest: Manifest, progress: Progress = ignore_progress) -> None:
    """Hash every file in `folder` and write manifest.json.

    Args:
        folder: the scratch folder, complete but for its manifest.
        manifest: all but `files`, which is filled in here.
        progress: told of the bytes done.
    """
    sizes = {f.relative_to(folder).as_posix(): f.stat().st_size for f in list_files(folder)}
    # What an export that was interrupted after its manifest has left is no part of this.
    sizes = {name: size for name, size in sizes.items() if name not in LATER_FILES}
    total, done, files = sum(sizes.values()), 0, {}
    for name, size in sizes.items():
        digest = _hash(folder / name, _count(progress, "hashing", done, total))
        files[name] = FileRecord(size, digest)
        done += size
    record = {**asdict(manifest), "files": {n: asdict(f) for n, f in files.items()}}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
