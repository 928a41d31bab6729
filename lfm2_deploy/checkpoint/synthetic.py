"""A model's name and a seed -> `SyntheticCheckpoint`: real shapes, random weights.

Enters: `NAME` or `NAME@SEED`. Leaves: tensors that are made when they are read, and
are the same however often and in whatever order. For tests, demos and timings
where the genuine weights are not at hand; it has no tokenizer.

A tensor's numbers come from 16 random bits each, which pick one of 65,536 quantiles
of the normal distribution. That is several times as fast as drawing normals, which
counts where there are 24 billion, and the stream of a numpy bit generator, unlike
its distributions, never changes from version to version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from math import prod, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from lfm2_deploy.checkpoint.shapes import SHAPES, make_config
from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import CheckpointError, SourceError
from lfm2_deploy.weights import WeightRole, WeightSpec, list_weights

_QUANTILES = 1 << 16
# A multiple of four, as one draw of 64 bits makes four numbers.
_CHUNK = 1 << 16
# Standard deviation of a product with inputs of deviation 1. Below 1 for layers, whose
# outputs add up in the residual stream.
_GAINS: Mapping[WeightRole, float] = {
    "embedding": 1.0,
    "head": 1.0,
    "router": 1.0,
    "projection": 0.7,
    "expert": 0.7,
    "conv": 0.7,
}
# Norms stay near 1; the bias moves some choices of experts and leaves most.
_VECTORS: Mapping[WeightRole, tuple[float, float]] = {"norm": (1.0, 0.1), "bias": (0.0, 0.1)}


@dataclass(frozen=True, slots=True)
class SyntheticCheckpoint:
    """A `Checkpoint` whose tensors are made from a seed and their names."""

    config: Lfm2Config
    raw_config: Mapping[str, Any]
    origin: Origin
    side_files: Mapping[str, Path]
    seed: int
    specs: Mapping[str, WeightSpec]

    @property
    def identity(self) -> str:
        """Name and seed, from which all weights are made."""
        return f"synthetic:{self.origin.name}@{self.seed}"

    def read(self, name: str) -> FloatArray:
        """One tensor, float32 in its canonical shape, newly allocated.

        Raises:
            CheckpointError: no such tensor.
        """
        spec = self.specs.get(name)
        if spec is None:
            raise CheckpointError(
                f"{self.origin.name} has no tensor {name!r}; names are those of list_weights"
            )
        mean, deviation = _choose_spread(spec)
        return _draw_normal(self.seed, name, spec.shape, mean, deviation)


def open_synthetic(text: str) -> SyntheticCheckpoint:
    """Describe a model whose weights are random; none is made yet.

    Args:
        text: a name in `shapes.SHAPES`, and if wanted "@" and a seed (0 otherwise).

    Raises:
        SourceError: no such name, or the seed is not an integer of 0 or above.
    """
    name, at, seed = text.partition("@")
    if name not in SHAPES:
        raise SourceError(f"no synthetic model {name!r}: expected one of {', '.join(SHAPES)}")
    if at and not (seed.isascii() and seed.isdigit()):
        raise SourceError(
            f"seed {seed!r} of synthetic:{text} is not an integer of 0 or above; "
            f"write for example synthetic:{name}@1"
        )
    raw = make_config(SHAPES[name])
    config = parse_config(raw)
    number = int(seed or "0")
    return SyntheticCheckpoint(
        config=config,
        raw_config=raw,
        origin=Origin(kind="synthetic", name=name, revision=str(number)),
        side_files={},
        seed=number,
        specs={spec.name: spec for spec in list_weights(config)},
    )


def _choose_spread(spec: WeightSpec) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's numbers."""
    if spec.role in _VECTORS:
        return _VECTORS[spec.role]
    return 0.0, _GAINS[spec.role] / sqrt(prod(spec.shape[1:]))


def _draw_normal(
    seed: int, name: str, shape: tuple[int, ...], mean: float, deviation: float
) -> FloatArray:
    key = int.from_bytes(sha256(f"{seed}:{name}".encode()).digest(), "little")
    bits = np.random.SFC64(key)
    table = _normal_quantiles() * np.float32(deviation) + np.float32(mean)
    values = np.empty(prod(shape), np.float32)
    for done in range(0, values.size, _CHUNK):
        part = values[done : done + _CHUNK]
        picks = bits.random_raw(-(-part.size // 4)).astype("<u8", copy=False).view("<u2")
        # "clip" lets take write straight to `out`; 16 bits are never out of range.
        np.take(table, picks[: part.size], out=part, mode="clip")
    return values.reshape(shape)


@cache
def _normal_quantiles() -> FloatArray:
    """float32 [65536]: the middles of as many equally likely slices."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)], np.float32)
