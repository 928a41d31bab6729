"""A Hugging Face checkpoint folder -> `FolderCheckpoint`.

Enters: a folder with config.json and *.safetensors, in one file or in shards.
Leaves: tensors by canonical name. Never unpickles, and never runs code that a
config's `auto_map` points at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from lfm2_deploy.config import Lfm2Config, read_config
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import CheckpointError, ConfigError, SourceError, UnsupportedModelError
from lfm2_deploy.json_file import read_json_object
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


def open_folder(folder: Path, origin: Origin | None = None) -> FolderCheckpoint:
    """Open a checkpoint folder and check every tensor's name, shape and dtype.

    Args:
        folder: an existing folder.
        origin: where it came from, when that is not the folder itself.

    Raises:
        ConfigError: config.json is absent or not of a usable LFM2 model.
        SourceError: the folder holds no safetensors weights, or not all shards.
        CheckpointError: a file is damaged, or tensors do not fit the config.
    """
    raw, config = read_description(folder)
    stored = _read_headers(_list_tensor_files(folder))
    pieces = locate_weights(config, stored, folder)
    if config.tie_word_embeddings and HEAD in stored:
        _require_same_head(stored[HEAD], stored[EMBEDDING])
    return FolderCheckpoint(
        config=config,
        raw_config=raw,
        origin=origin or Origin(kind="folder", name=folder.resolve().name),
        side_files={name: folder / name for name in SIDE_FILES if (folder / name).is_file()},
        pieces=pieces,
    )


def read_description(folder: Path) -> tuple[dict[str, Any], Lfm2Config]:
    """A folder's config.json, as found and parsed.

    Raises:
        ConfigError: it is absent, or not of a usable LFM2 model.
        SourceError: the folder is a LoRA adapter, not a model.
    """
    file = folder / CONFIG_FILE
    if not file.exists() and (folder / "adapter_config.json").exists():
        raise SourceError(
            f"{folder} is a LoRA adapter, not a model; pass the model it was trained on, "
            "and this folder as the adapter"
        )
    config = read_config(folder)
    if config.text_part_of is not None:
        raise UnsupportedModelError(
            f"{folder} is a vision or audio checkpoint ('{config.text_part_of}'), whose text "
            "part cannot be exported yet; use a text model such as LiquidAI/LFM2-1.2B"
        )
    return read_json_object(file, ConfigError, "download it again"), config


def lacks_weights(folder: Path) -> bool:
    """Whether a file of the weights is absent.

    Raises:
        SourceError: the index is damaged, so that none can tell.
    """
    index = folder / INDEX_FILE
    files = _read_index(index) if index.is_file() else [folder / SINGLE_FILE]
    return not all(file.is_file() for file in files)


def _list_tensor_files(folder: Path) -> list[Path]:
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if not index.is_file():
        if not single.is_file():
            raise SourceError(_explain_no_weights(folder))
        return [single]
    shards = _read_index(index)
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


def _read_index(index: Path) -> list[Path]:
    try:
        raw = read_json_object(index, SourceError, "download it again")
        names = sorted(set(raw["weight_map"].values()))
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
