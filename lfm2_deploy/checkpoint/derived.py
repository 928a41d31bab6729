"""What checkpoints that change another's tensors share: all but the tensors is the other's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, FloatArray, Origin


class DerivedCheckpoint:
    """A `Checkpoint` over another; as it stands, the same."""

    def __init__(self, base: Checkpoint) -> None:
        self.base = base

    @property
    def config(self) -> Lfm2Config:
        """The parsed config.json."""
        return self.base.config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        """config.json as it was found."""
        return self.base.raw_config

    @property
    def origin(self) -> Origin:
        """Where the base came from."""
        return self.base.origin

    @property
    def identity(self) -> str:
        """The base's; see `contracts.Checkpoint.identity`."""
        return self.base.identity

    @property
    def side_files(self) -> Mapping[str, Path]:
        """The base's."""
        return self.base.side_files

    def read(self, name: str) -> FloatArray:
        """One tensor; see `contracts.Checkpoint.read`."""
        return self.base.read(name)
