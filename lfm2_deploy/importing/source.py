"""What a user named -> the one file to import, and the folder with what comes along.

Enters: a folder, a file or a Hub id. Leaves: which kind of export it is, its file, and config.json.
Of a repository with several variants, one is chosen by name or the names are listed; of a Hub
repository only that variant's files are downloaded. Knows nothing of what is inside a graph.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lfm2_deploy.checkpoint.folder import CONFIG_FILE, SIDE_FILES
from lfm2_deploy.checkpoint.hub import fetch_known, list_files
from lfm2_deploy.checkpoint.source import is_hub_id
from lfm2_deploy.contracts import Origin, Progress
from lfm2_deploy.errors import SourceError
from lfm2_deploy.manifest import MANIFEST
from lfm2_deploy.words import quote_path

GGUF, ONNX, OPENVINO = "gguf", "onnx", "openvino"
_IR = "openvino_model.xml"
_SUFFIXES = {".gguf": GGUF, ".onnx": ONNX, ".xml": OPENVINO}
# Parts of vision and audio models, which are no text model's graph.
_PARTS = (
    *("embed_", "embeddings", "vision_", "audio_", "decoder", "detokenizer", "depthformer"),
    *("vocoder", "mmproj"),
)
# What else people call a variant.
_ALIASES = {"q8": "quantized", "quantized": "q8", "model": "fp32"}
# How llama-gguf-split names a part.
_PART = re.compile(r"-(\d{5})-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class Found:
    """One export.

    Args:
        kind: `GGUF`, `ONNX` or `OPENVINO`.
        folder: that was named, or the Hub's snapshot.
        name: the file in it, with "/".
        origin: where it came from.
    """

    kind: str
    folder: Path
    name: str
    origin: Origin

    @property
    def file(self) -> Path:
        """The file's place."""
        return self.folder / self.name

    @property
    def address(self) -> str:
        """What names the file as a checkpoint, so that it is found again."""
        return f"{self.origin.name}/{self.name}" if self.origin.kind == "hub" else str(self.file)

    def find_beside(self, name: str) -> Path | None:
        """A file of the folder, or beside the graph; None where there is none."""
        places = (self.folder / name, self.file.parent / name)
        return next((place for place in places if place.is_file()), None)


def find_source(
    source: str, variant: str | None, revision: str | None, progress: Progress
) -> Found:
    """Find the one export that is meant; of a Hub repository, download it.

    Args:
        source: a folder, a .onnx, .xml or .gguf file, or a Hub id.
        variant: which, where there are several, such as "q4" or "Q4_0".
        revision: branch, tag or commit of a Hub repository.
        progress: told when a download starts and ends.

    Raises:
        SourceError: there is none, or several; says which.
    """
    place = Path(os.path.expanduser(source))
    if source and place.exists():
        if revision is not None:
            raise SourceError(
                f"revision {revision!r} was given with {source!r}, but only Hub models have "
                "revisions; leave it out"
            )
        return _find_local(place, variant)
    if is_hub_id(source):
        return _find_on_hub(source, variant, revision, progress)
    raise SourceError(
        f"{source!r} was not found: expected a folder with an ONNX graph, an OpenVINO IR or a GGUF "
        "file, such a file, or a Hub id 'owner/name' such as onnx-community/LFM2-350M-ONNX"
    )


def _find_local(place: Path, variant: str | None) -> Found:
    if place.is_file():
        kind = _SUFFIXES.get(place.suffix.lower())
        if kind is None:
            raise SourceError(f"{place} is no .onnx, .xml or .gguf file, and nothing else is known")
        # A graph in onnx/ has its config and tokenizer one folder up.
        above = place.parent.name == ONNX and not (place.parent / CONFIG_FILE).is_file()
        folder = place.parent.parent if above else place.parent
        name = place.relative_to(folder).as_posix()
        return Found(kind, folder, name, _name_folder(folder))
    if (place / MANIFEST).is_file():
        raise SourceError(f"{place} is a bundle already: `lfm2-deploy inspect {quote_path(place)}`")
    names = [file.relative_to(place).as_posix() for file in sorted(place.glob("*"))]
    names += [file.relative_to(place).as_posix() for file in sorted(place.glob("o*/*"))]
    kind, name = choose(names, variant, str(place))
    return Found(kind, place, name, _name_folder(place))


def _name_folder(folder: Path) -> Origin:
    return Origin(kind="folder", name=folder.resolve().name)


def _find_on_hub(
    model: str, variant: str | None, revision: str | None, progress: Progress
) -> Found:
    names, commit = list_files(model, revision)
    kind, name = choose(names, variant, model)
    wanted = [CONFIG_FILE, *SIDE_FILES, *list_parts(names, name)]
    what = f"download {model}"
    progress(what, 0, 0)
    folder, _ = fetch_known(model, commit, wanted)
    progress(what, 1, 1)
    return Found(kind, folder, name, Origin(kind="hub", name=model, revision=commit))


def list_parts(names: Iterable[str], graph: str) -> list[str]:
    """A graph's file and those its weights lie in, by how exporters name them."""
    if graph.endswith(".xml"):
        return [graph, f"{graph.removesuffix('.xml')}.bin"]
    beginnings = (f"{graph}_data", f"{graph}.data")
    return [graph, *(name for name in names if name.startswith(beginnings))]


def choose(names: Sequence[str], variant: str | None, where: str) -> tuple[str, str]:
    """Kind and name of the one export among files.

    Args:
        names: of all files, with "/" between folders.
        variant: which, where there are several.
        where: the place, for errors.

    Raises:
        SourceError: there is none, none of that variant, or several.
    """
    found = [one for kind in (ONNX, OPENVINO, GGUF) for one in _list_variants(names, kind)]
    if not found:
        raise SourceError(_explain_none(names, where))
    hits = found if variant is None else [one for one in found if one.is_called(variant.lower())]
    if len(hits) == 1:
        return hits[0].kind, hits[0].file
    words = ", ".join(_label(hits or found))
    if not hits:
        raise SourceError(f"{where} has no variant {variant!r}: it has {words}")
    if variant is not None:
        raise SourceError(f"{where} has {len(hits)} variants {variant!r}: it has {words}")
    raise SourceError(f"{where} holds {len(hits)} variants: choose one with --variant ({words})")


@dataclass(frozen=True, slots=True)
class _Variant:
    """One export among several.

    Args:
        kind: of `Found`.
        word: what people call it.
        file: its name, with "/".
    """

    kind: str
    word: str
    file: str

    def is_called(self, name: str) -> bool:
        """Whether a name, in lower case, means it: the word, another for that, or the file."""
        path = PurePosixPath(self.file.lower())
        return name in (self.word, _ALIASES.get(self.word), path.name, path.stem, str(path))


def _label(variants: Sequence[_Variant]) -> list[str]:
    """A word for each; its file where a word means several."""
    counts = Counter(one.word for one in variants)
    return [one.word if counts[one.word] == 1 else one.file for one in variants]


def _list_variants(names: Sequence[str], kind: str) -> list[_Variant]:
    paths = [PurePosixPath(name) for name in names]
    if kind == OPENVINO:
        own = [path for path in paths if path.name == _IR]
        return [_Variant(kind, path.parent.name or OPENVINO, str(path)) for path in own]
    if kind == GGUF:
        own = [path for path in paths if path.suffix.lower() == ".gguf"]
        models = [path for path in own if not path.name.lower().startswith(_PARTS)]
        return [
            _Variant(kind, _name_quantization(path.stem), str(path))
            for path in models
            if (part := _PART.search(path.stem)) is None or int(part[1]) == 1
        ]
    graphs = [
        path
        for path in paths
        if path.suffix == ".onnx"
        and str(path.parent) in (".", ONNX)
        and not path.name.startswith(_PARTS)
    ]
    return [_Variant(kind, _name_precision(path), str(path)) for path in graphs]


def _name_precision(path: PurePosixPath) -> str:
    """onnx/model_q4.onnx -> q4; a model.onnx beside config.json may be of any precision."""
    word = path.stem.removeprefix("model").lstrip("_").lower()
    return word or ("fp32" if path.parent.name == ONNX else "model")


def _name_quantization(stem: str) -> str:
    """LFM2-350M-Q4_0 and LFM2-350M.Q4_0 -> q4_0."""
    return re.split(r"[-.]", _PART.sub("", stem))[-1].lower()


def _explain_none(names: Sequence[str], where: str) -> str:
    parts = [name for name in names if PurePosixPath(name).name.startswith(_PARTS)]
    if any(name.endswith((".onnx", ".xml", ".gguf")) for name in parts):
        return (
            f"{where} holds parts of a vision or audio model ({parts[0]}), which are not run here: "
            "give a text model's export"
        )
    if any(name.endswith(".safetensors") for name in names):
        return f"{where} is a checkpoint: make a bundle of it with `lfm2-deploy export`"
    return (
        f"{where} holds no export that can be imported: expected onnx/model*.onnx, model.onnx, "
        f"{_IR} or a .gguf file"
    )
