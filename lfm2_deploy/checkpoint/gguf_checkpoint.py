"""A *.gguf file -> `GgufCheckpoint`.

Enters: a file that llama.cpp's converter or quantizer wrote. Leaves: tensors by canonical name,
read one at a time, and how the file stores each. The small files that a folder would have are
made when they are first asked for, in a folder that goes with the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lfm2_deploy.checkpoint.gguf_config import read_gguf_config
from lfm2_deploy.checkpoint.gguf_file import GgufFile, read_gguf
from lfm2_deploy.checkpoint.gguf_layout import GgufPiece, locate_gguf
from lfm2_deploy.checkpoint.gguf_numbers import describe_form, read_rows
from lfm2_deploy.checkpoint.gguf_tokenizer import list_side_files
from lfm2_deploy.checkpoint.tensor_file import identify_files, require_finite
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Origin, StoredForm
from lfm2_deploy.errors import CheckpointError, SourceError

SUFFIX = ".gguf"


class GgufCheckpoint:
    """A `Checkpoint` whose tensors lie in one GGUF file; it is `TellsForms`, too."""

    def __init__(
        self,
        file: GgufFile,
        raw_config: Mapping[str, Any],
        config: Lfm2Config,
        pieces: Mapping[str, GgufPiece],
        origin: Origin,
    ) -> None:
        self.config, self.raw_config, self.origin = config, raw_config, origin
        self._file, self._pieces = file, pieces

    @property
    def identity(self) -> str:
        """The file's place, size and times of change, and the config made of its metadata."""
        files = identify_files([self._file.path])
        return f"{files}\n{json.dumps(self.raw_config, sort_keys=True)}"

    @property
    def side_files(self) -> Mapping[str, Path]:
        """Tokenizer, chat template and settings, as the metadata make them.

        Raises:
            CheckpointError: the tokenizer is damaged, or of another kind than LFM2's.
        """
        return self._written[1]

    @cached_property
    def _written(self) -> tuple[TemporaryDirectory[str], dict[str, Path]]:
        # The folder is removed when this object is.
        folder = TemporaryDirectory(prefix="lfm2-deploy-gguf-")
        paths = {}
        for name, text in list_side_files(self._file).items():
            paths[name] = Path(folder.name) / name
            paths[name].write_text(text, encoding="utf-8", newline="\n")
        return folder, paths

    def stored_as(self, name: str) -> StoredForm:
        """How the file stores a tensor; see `contracts.TellsForms`."""
        return describe_form(self._find(name).tensor.type_name)

    def read(self, name: str) -> FloatArray:
        """One tensor, float32 in its canonical shape, newly allocated.

        Raises:
            CheckpointError: no such tensor; or it is truncated, or not finite.
        """
        piece = self._find(name)
        values = read_rows(self._file.path, piece.tensor, piece.first_row, piece.rows)
        require_finite(values, f"{name} in {self._file.path}")
        return values.reshape(piece.shape)

    def _find(self, name: str) -> GgufPiece:
        if name not in self._pieces:
            raise CheckpointError(
                f"{self.origin.name} has no tensor {name!r}; names are those of list_weights"
            )
        return self._pieces[name]


def open_gguf(path: Path, origin: Origin | None = None) -> GgufCheckpoint:
    """Open a GGUF file and check every tensor's name, shape and type.

    Args:
        path: an existing file.
        origin: where it came from, when that is not the file itself.

    Raises:
        SourceError: it is not a GGUF file, or one of several parts.
        ConfigError: it is not of a usable LFM2 model.
        CheckpointError: it is damaged, or its tensors do not fit its metadata.
        RuntimeUnavailableError: the gguf package is not installed.
    """
    try:
        file = read_gguf(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from error
    raw, config = read_gguf_config(file)
    pieces = locate_gguf(config, file)
    return GgufCheckpoint(file, raw, config, pieces, origin or Origin("file", path.name))
