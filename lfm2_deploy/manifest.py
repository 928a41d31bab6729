"""manifest.json of a bundle: what it says, and what is believed of it.

A bundle may come from anywhere, so nothing in its manifest is taken on trust: types,
file names, states and sizes are checked before anything acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PureWindowsPath
from reprlib import repr as shorten
from typing import Any

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import BundleError, ConfigError
from lfm2_deploy.imported import ImportedRecord, parse_imported
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.model_parts import TEXT, find_whole
from lfm2_deploy.quantization_record import QuantizationRecord, parse_record
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.words import quote_path

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
# The look-up of embeddings beside a GRAPH that takes them; named as in transformers.js' exports.
EMBED_FILE = "embed_tokens.onnx"
CONFIG, GENERATION = "config.json", "generation_config.json"
CANARY = "canary.json"
# Other programs that read bundles, as `--io` calls them.
GENAI, GENAI_LEGACY, TRANSFORMERSJS = READERS = ("genai", "genai-legacy", "transformersjs")
# Beside the manifest and not in it, since they may change later.
CARD, MEASUREMENTS = "README.md", "measurements.json"

# What states may be made of.
STATE_DTYPES = ("float32", "float16")
_AGAIN = "export the model again"
_KINDS = {int: "an integer", str: "text", list: "a list", dict: "an object"}


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
class GraphRecord:
    """One graph of the bundle.

    Args:
        name: what runtimes call it: "model", or of an NPU's "embed", "prefill", "decode", "head".
        file: its file.
        device: where it runs: "target", or "cpu" beside the target.
    """

    name: str
    file: str
    device: str


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A graph compiled ahead of time for one kind of NPU.

    Args:
        graph: name of the graph.
        start: the input it begins with; a file may hold several graphs.
        file: its file.
        platform: the NPU, such as "4000".
        compiler: its version, and where its package is not OpenVINO, that package's.
        openvino: version of the OpenVINO that can load it; no other can. Empty where that is for
            the compiler's own package to say.
    """

    graph: str
    start: str
    file: str
    platform: str
    compiler: str
    openvino: str


@dataclass(frozen=True, slots=True)
class ReaderRecord:
    """A graph over the same weights under the names that another program looks for.

    Args:
        io: what `--io` calls that program.
        file: the graph's file.
    """

    io: str
    file: str


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
        graphs: the graphs, which share the weights.
        chunk: tokens that one call of a prompt takes, where shapes are fixed; else 0.
        blobs: graphs that were compiled ahead of time.
        rounding: how weights were rounded, and what that costs; None for floats.
        weights: the file that ONNX graphs read their weights from.
        readers: the same model for other programs.
        imported: where the graph is somebody else's, what made it and what it cannot do.
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
    # Bundles of version 0.1 have one graph and do not say so.
    graphs: tuple[GraphRecord, ...] = (GraphRecord("model", GRAPH, "target"),)
    chunk: int = 0
    blobs: tuple[BlobRecord, ...] = ()
    rounding: QuantizationRecord | None = None
    weights: str = WEIGHTS
    readers: tuple[ReaderRecord, ...] = ()
    imported: ImportedRecord | None = None

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Files of the weights: an IR has its own, ONNX graphs share one."""
        graph = self.graphs[0].file
        if not graph.endswith(".onnx"):
            return (f"{graph.removesuffix('.xml')}.bin",)
        # Somebody else's weights may lie in several files: the first's name with a number.
        parts = (name for name in self.files if name.startswith(f"{self.weights}_"))
        return (self.weights, *sorted(parts))


def _explain_absence(folder: Path) -> str:
    """Why a folder without a manifest is no bundle; `export` makes none over other files."""
    if not folder.exists():
        return f"does not exist: make one with `lfm2-deploy export MODEL {quote_path(folder)}`"
    if (folder / CONFIG).is_file() and any(folder.glob("*.safetensors")):
        command = f"lfm2-deploy export {quote_path(folder)}{_choose_part(folder)}"
        return f"is a checkpoint, not a bundle (no manifest.json): make one with `{command}`"
    return "is not a bundle (no manifest.json): give a folder that `lfm2-deploy export` made"


def _choose_part(folder: Path) -> str:
    """What a checkpoint that cannot be exported whole wants in such a command."""
    try:
        whole = find_whole(read_json_object(folder / CONFIG, ConfigError, _AGAIN))
    except ConfigError:
        return ""
    return "" if whole is None else f" --part {TEXT}"


def read_manifest(folder: Path) -> tuple[Manifest, Lfm2Config]:
    """Read and check a bundle's manifest; its files are not looked at.

    Raises:
        BundleError: it is absent, of another schema, or damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder} {_explain_absence(folder)}")
    raw = read_json_object(file, BundleError, f"it is damaged; {_AGAIN}")
    if "schema_version" not in raw:
        raise BundleError(f"{file} is damaged (no schema_version); {_AGAIN}")
    version = raw["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {shorten(version)}, this package reads {SCHEMA_VERSION}; "
            "export the model again, or install the version that wrote it"
        )
    try:
        manifest = _parse(raw)
        config = parse_config(manifest.config)
        _check(manifest, config)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{file} is damaged ({reason}); {_AGAIN}") from error
    return manifest, config


def _parse(raw: dict[str, Any]) -> Manifest:
    return Manifest(
        **{
            **raw,
            "origin": Origin(**raw["origin"]),
            "states": tuple(StateSpec(**{**s, "shape": tuple(s["shape"])}) for s in raw["states"]),
            "notes": tuple(_expect(raw["notes"], list, "notes")),
            "quantization": tuple(StoredTensor(**t) for t in raw["quantization"]),
            "files": {name: FileRecord(**record) for name, record in raw["files"].items()},
            **_parse_records(raw),
        }
    )


def _parse_records(raw: dict[str, Any]) -> dict[str, Any]:
    """What bundles of version 0.1 do not have."""
    kinds = {"graphs": GraphRecord, "blobs": BlobRecord, "readers": ReaderRecord}
    records: dict[str, Any] = {
        key: tuple(kind(**record) for record in raw[key])
        for key, kind in kinds.items()
        if key in raw
    }
    if raw.get("rounding") is not None:
        records["rounding"] = parse_record(raw["rounding"])
    if raw.get("imported") is not None:
        records["imported"] = parse_imported(raw["imported"])
    return records


def _expect(value: Any, kind: type, name: str) -> Any:
    """The value, or ValueError where it is of another type; true and false are no integers."""
    if type(value) is not kind:
        raise ValueError(f"{name} is {shorten(value)}, expected {_KINDS[kind]}")
    return value


def _check(manifest: Manifest, config: Lfm2Config) -> None:
    """Raise ValueError for what has the right form and cannot be right."""
    _check_description(manifest)
    longest = config.max_position_embeddings
    context = _expect(manifest.context_length, int, "context_length")
    if not 1 <= context <= longest:
        raise ValueError(f"context_length is {context}, expected 1 to {longest}")
    # By their text, since 1.0 and true equal 1.
    if repr(manifest.states) not in _list_forms_of_states(config):
        raise ValueError("its states are not those of its config")
    graphs: list[GraphRecord | BlobRecord | ReaderRecord] = [
        *manifest.graphs,
        *manifest.blobs,
        *manifest.readers,
    ]
    for graph in graphs:
        for field in fields(graph):
            _expect(getattr(graph, field.name), str, f"{field.name} of a graph")
    if not manifest.graphs:
        raise ValueError("it lists no graph")
    for own in manifest.graphs:
        if own.device not in ("target", "cpu", "gpu"):
            raise ValueError(f"graph {own.name} runs on {shorten(own.device)}")
    if _expect(manifest.chunk, int, "chunk") < 0:
        raise ValueError(f"chunk is {manifest.chunk}")
    _expect(manifest.weights, str, "weights")
    files = [graph.file for graph in graphs]
    missing = {CONFIG, *manifest.weight_files, *files} - manifest.files.keys()
    if missing:
        raise ValueError(f"it lists no {min(missing)}")
    for name, record in manifest.files.items():
        if not is_plain_path(name):
            raise ValueError(f"{name!r} is not a plain file name")
        if _expect(record.size_bytes, int, f"size of {name}") < 0:
            raise ValueError(f"size of {name} is {record.size_bytes}")
        _expect(record.sha256, str, f"hash of {name}")


def _list_forms_of_states(config: Lfm2Config) -> set[str]:
    """The states a bundle of this config may have, as text."""
    return {
        repr(list_states(config, dtype, channels_last=channels_last))
        for dtype in STATE_DTYPES
        for channels_last in (False, True)
    }


def _check_description(manifest: Manifest) -> None:
    for name in ("model", "target", "runtime", "precision"):
        _expect(getattr(manifest, name), str, name)
    for name, value in asdict(manifest.origin).items():
        _expect(value, str, f"origin.{name}")
    for tensor in manifest.quantization:
        for field in fields(tensor):
            kind = int if field.name in ("bits", "group") else str
            _expect(getattr(tensor, field.name), kind, f"{field.name} of a stored tensor")
    for package, made in _expect(manifest.made_with, dict, "made_with").items():
        _expect(made, str, f"version of {package!r}")
    for note in manifest.notes:
        _expect(note, str, "a note")


def is_plain_name(name: str) -> bool:
    """Whether a name means a file right inside a folder, on every system, and can be shown."""
    inside = name not in ("", ".", "..") and "/" not in name
    return inside and PureWindowsPath(name).name == name and name.isprintable()


def is_plain_path(path: str) -> bool:
    """Whether a path means a file in a folder, or in a folder right inside it, on every system."""
    return path.count("/") <= 1 and all(map(is_plain_name, path.split("/")))
