"""What an adopter of graphs hands back to whoever writes the manifest."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import DiskFullError
from lfm2_deploy.manifest import StoredTensor


@dataclass(frozen=True, slots=True)
class Adopted:
    """A graph that lies in the bundle's folder, and what was seen of it.

    Args:
        graph: its file there.
        target: the target whose runtime runs it.
        runtime: that runtime.
        tool: what made it, with its version; "" where it does not say.
        made_with: package -> version, as the graph tells.
        precision: "fp32", "fp16", "int8" or "int4".
        state_dtype: numpy name of the states' type.
        traits: keys of `lfm2_deploy.imported.TRAITS`.
        quantization: how tensors are stored, of those whose names are known.
        positions: most tokens that its positional tables hold; 0 where there are none.
        notes: what else a user should know.
    """

    graph: str
    target: str
    runtime: str
    tool: str
    made_with: Mapping[str, str]
    precision: str
    state_dtype: str
    traits: tuple[str, ...]
    quantization: tuple[StoredTensor, ...] = ()
    positions: int = 0
    notes: tuple[str, ...] = ()


class Adopt(Protocol):
    """Puts a graph and its weights into a folder."""

    def __call__(self, file: Path, folder: Path, config: Lfm2Config) -> Adopted:
        """Adopt a graph.

        Args:
            file: the graph; what it refers to lies beside it.
            folder: the bundle's.
            config: of the model that it should be.

        Raises:
            SourceError: it cannot be used; says why.
        """


def place_file(source: Path, target: Path) -> None:
    """Copy a file as it is.

    A hard link would save its room, and then onnx 1.23 opens neither the bundle's graph nor the
    source's ("multiple hard links, indicating a potential hardlink attack").

    Args:
        source: may be a link, as in the Hub's cache.
        target: must not exist.

    Raises:
        DiskFullError: there is no room.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFullError(
            f"the disk of {target.parent.parent} has no room for {source.name} "
            f"({source.stat().st_size:,} bytes): free some, or choose another disk"
        ) from error
