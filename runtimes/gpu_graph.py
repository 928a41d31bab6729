"""One loaded graph for a GPU, and the weights that several graphs share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lfm2_deploy.errors import BundleError
from lfm2_deploy.gpu_graphs import (
    BOUND_WEIGHTS,
    EVERY_LAYER,
    BoundWeight,
    parse_bound_weights,
)
from runtimes.gpu_memory import Memory

# (a graph's file, name of a dimension -> its size) -> a session, every node on the device.
Loader = Callable[[Path, Mapping[str, int]], ort.InferenceSession]
_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "uint8": "tensor(uint8)",
}


class Graph:
    """One loaded graph, and the weights that are bound to it.

    Args:
        session: its session.
        bound: name of an input -> its weight on the device; where a graph serves several
            layers, a name in one of them.
        steps: S, or 0 where it takes any number.
        logit_count: K, or 0 where it gives any number.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        bound: Mapping[str, ort.OrtValue],
        steps: int = 0,
        logit_count: int = 0,
    ) -> None:
        self.session, self.bound = session, bound
        self.steps, self.logit_count = steps, logit_count
        self.inputs = frozenset(value.name for value in session.get_inputs())


class BoundWeights:
    """Weights on the device, each once for all sessions."""

    def __init__(self, file: Path, memory: Memory) -> None:
        self._file, self._memory = file, memory
        self._values: dict[str, ort.OrtValue] = {}

    def find(self, session: ort.InferenceSession) -> dict[str, ort.OrtValue]:
        """Those that a session wants, by name.

        Raises:
            BundleError: its list of them is damaged, or is not what the graph takes.
        """
        raw = session.get_modelmeta().custom_metadata_map.get(BOUND_WEIGHTS, "{}")
        wanted = parse_bound_weights(raw, self._file.stat().st_size)
        inputs = {value.name: value for value in session.get_inputs()}
        for name, place in wanted.items():
            self._check(name, place, inputs.get(name) or inputs.get(_share_name(name)))
            if name not in self._values:
                mapped = np.memmap(self._file, place.dtype, "r", place.offset, place.shape)
                self._values[name] = self._memory.upload(mapped)
        return {name: self._values[name] for name in wanted}

    def _check(self, name: str, place: BoundWeight, taken: Any) -> None:
        if taken is None or _TYPES[place.dtype] != taken.type or [*place.shape] != taken.shape:
            takes = "nothing of that name" if taken is None else f"{taken.type} {taken.shape}"
            raise BundleError(
                f"{self._file.parent} is damaged: {name} is listed as {place.dtype} "
                f"{[*place.shape]}, and the graph takes {takes}; export the model again"
            )


def _share_name(name: str) -> str:
    """A weight's name in a graph that serves several layers."""
    return re.sub(r"\.\d+\.", f".{EVERY_LAYER}.", name, count=1)
