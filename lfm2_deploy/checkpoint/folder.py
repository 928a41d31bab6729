"""A Hugging Face checkpoint folder -> `FolderCheckpoint`.

Enters: a folder with config.json and *.safetensors, in one file or in shards.
Leaves: tensors by canonical name. Never unpickles, and never runs code that a
config's `auto_map` points at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_deploy.checkpoint.layout import Piece, locate_weights
from lfm2_deploy.checkpoint.tensor_file import (
    DTYPE_BYTES,
    StoredTensor,
    identify_files,
    read_floats,
    read_header,
    require_finite,
)
from lfm2_deploy.checkpoint.text_tensors import find_text_tensors, name_text_tensor
from lfm2_deploy.config import Lfm2Config, parse_config, parse_text_part, read_config
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import CheckpointError, ConfigError, SourceError, UnsupportedModelError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.model_parts import TEXT, Whole, check_part, explain_whole, find_whole
from lfm2_deploy.weights import EMBEDDING, HEAD

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_COMPARED_ELEMENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class FolderCheckpoint:
    """A `Checkpoint` whose tensors lie in *.safetensors files."""

    config: Lfm2Config
    raw_config: Mapping[str, Any]
    origin: Origin
    side_files: Mapping[str, Path]
    pieces: Mapping[str, Piece]

    @property
    def identity(self) -> str:
        """Places, sizes and times of change of the weights' files, and what config.json says."""
        files = identify_files({piece.tensor.file for piece in self.pieces.values()})
        return f"{files}\n{json.dumps(self.raw_config, sort_keys=True)}"

    def read(self, name: str) -> FloatArray:
        """One tensor, float32 in its canonical shape, newly allocated.

        Raises:
            CheckpointError: no such tensor; or it is truncated, or not finite.
        """
        piece = self.pieces.get(name)
        if piece is None:
            raise CheckpointError(
                f"{self.origin.name} has no tensor {name!r}; names are those of list_weights"
            )
        values = read_floats(piece.tensor, piece.start, piece.num_elements)
        require_finite(values, f"{name} in {piece.tensor.file}")
        return values.reshape(piece.shape)


@dataclass(frozen=True, slots=True)
class Description:
    """What a folder's config.json says.

    Args:
        raw: the config as a text model's: as it was found, or the text part's.
        config: the same, parsed.
        whole: what the text part is of; None for a text model.
    """

    raw: Mapping[str, Any]
    config: Lfm2Config
    whole: Whole | None = None


def open_folder(
    folder: Path, origin: Origin | None = None, part: str | None = None
) -> FolderCheckpoint:
    """Open a checkpoint folder and check every tensor's name, shape and dtype.

    Args:
        folder: an existing folder.
        origin: where it came from, when that is not the folder itself.
        part: "text" for the text part of a vision or audio model; files with none of its
            tensors may be absent.

    Raises:
        ConfigError: config.json is absent or not of a usable LFM2 model, or it has no such part.
        SourceError: the folder holds no safetensors weights, or not all shards.
        CheckpointError: a file is damaged, or tensors do not fit the config.
    """
    found = read_description(folder, part)
    config, stored = found.config, _read_headers(_list_tensor_files(folder, found.whole))
    if found.whole is not None:
        text = find_text_tensors(stored, found.whole)
        stored = {name: stored[text.names[name]] for name in text.names}
        if text.note:
            config = replace(config, assumptions=(*config.assumptions, text.note))
    pieces = locate_weights(config, stored, folder)
    if config.tie_word_embeddings and HEAD in stored:
        _require_same_head(stored[HEAD], stored[EMBEDDING])
    own = Origin(kind="folder", name=folder.resolve().name, part=part or "")
    return FolderCheckpoint(
        config=config,
        raw_config=found.raw,
        origin=origin or own,
        side_files={name: folder / name for name in SIDE_FILES if (folder / name).is_file()},
        pieces=pieces,
    )


def read_description(folder: Path, part: str | None = None, model: str = "") -> Description:
    """A folder's config.json, as found and parsed.

    Args:
        folder: where it lies.
        part: "text" for the text part of a vision or audio model.
        model: what the user calls the model; "" for the folder itself.

    Raises:
        ConfigError: it is absent, or not of a usable LFM2 model, or has no such part.
        SourceError: the folder is a LoRA adapter, not a model.
    """
    file = folder / CONFIG_FILE
    if not file.exists():
        if (folder / "adapter_config.json").exists():
            raise SourceError(
                f"{folder} is a LoRA adapter, not a model; pass the model it was trained on, "
                "and this folder as the adapter"
            )
        read_config(folder)  # says that there is none
    raw = read_json_object(file, ConfigError, "download it again")
    whole = find_whole(raw)
    if check_part(part) == TEXT:
        text, config = parse_text_part(raw)
        return Description(text, config, whole)
    if whole is not None:
        raise UnsupportedModelError(explain_whole(whole, model or str(folder)))
    return Description(raw, parse_config(raw))


def lacks_weights(folder: Path, whole: Whole | None = None) -> bool:
    """Whether a file of the weights is absent; of a vision or audio model, of its text part's.

    Raises:
        SourceError: the index is damaged, so that none can tell.
    """
    index = folder / INDEX_FILE
    files = read_index(index, whole) if index.is_file() else [folder / SINGLE_FILE]
    return not all(file.is_file() for file in files)


def _list_tensor_files(folder: Path, whole: Whole | None) -> list[Path]:
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if not index.is_file():
        if not single.is_file():
            raise SourceError(_explain_no_weights(folder))
        return [single]
    shards = read_index(index, whole)
    if single.is_file() and single not in shards:
        raise SourceError(
            f"{folder} holds both {SINGLE_FILE} and {INDEX_FILE}, which names other files; "
            "remove the one that is out of date"
        )
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise SourceError(
            f"{folder} lacks {len(absent)} of {len(shards)} files that {INDEX_FILE} names, "
            f"first {absent[0]}; download the missing files"
        )
    return shards


def read_index(index: Path, whole: Whole | None = None) -> list[Path]:
    """The files that an index names; of a vision or audio model, those its text part lies in.

    Raises:
        SourceError: it is damaged.
    """
    try:
        raw = read_json_object(index, SourceError, "download it again")
        files = raw["weight_map"].items()
        names = sorted(
            {file for name, file in files if whole is None or name_text_tensor(name, whole)}
        )
        # A shard lies beside its index; a path that leads elsewhere is not followed.
        outside = [name for name in names if not name or Path(name).name != name]
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{index} is not a safetensors index ({type(error).__name__}: {error}); "
            "download it again"
        ) from error
    if outside or not names:
        seen = f"names {outside[0]!r}" if outside else "names no file"
        raise SourceError(f"{index} {seen}: expected files in its own folder; download it again")
    return [index.parent / name for name in names]


def _explain_no_weights(folder: Path) -> str:
    wanted = f"expected {SINGLE_FILE} or {INDEX_FILE}"
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return (
            f"{folder} holds {shards[0].name} but no {INDEX_FILE}: {wanted}; download the index, "
            f"or rename a single file to {SINGLE_FILE}"
        )
    pickles = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds only pickled weights ({pickles[0].name}), which can run code when "
            "loaded and are never opened; convert them to safetensors (save_pretrained does)"
        )
    return f"{folder} holds no weights: {wanted}; pass the folder that holds them"


def _read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in stored:
                raise CheckpointError(
                    f"{name} is in both {stored[name].file.name} and {file.name}; "
                    "download the checkpoint again into an empty folder"
                )
            stored[name] = tensor
    return stored


def _require_same_head(head: StoredTensor, embedding: StoredTensor) -> None:
    """A tied model's redundant head must not hide one that was trained apart."""
    rows, columns = embedding.shape
    count = min(rows * columns, _COMPARED_ELEMENTS)
    # From the middle: the first rows are special tokens, often never trained.
    start = (rows * columns - count) // 2
    same = head.dtype in DTYPE_BYTES and np.array_equal(
        read_floats(head, start, count), read_floats(embedding, start, count)
    )
    if not same:
        raise CheckpointError(
            f"{HEAD} in {head.file} differs from {EMBEDDING}, but config.json says they are "
            "tied; set tie_word_embeddings to false, or remove the head"
        )
