"""Which graph serves a call: one for any length, or one of fixed shapes for each of few lengths."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from lfm2_deploy.bundle import WEIGHTS, Bundle
from lfm2_deploy.gpu_graphs import (
    BOUND_WEIGHTS,
    DECODE,
    LOGIT_COUNT,
    MODEL,
    PREFILL,
    ROOM,
    STEPS,
    parse_bound_weights,
)
from runtimes.gpu_memory import Memory

# (a graph's file, name of a dimension -> its size) -> a session, every node on the device.
Loader = Callable[[Path, Mapping[str, int]], ort.InferenceSession]

# Tokens that a growing buffer of keys and values begins with.
_FIRST_ROOM = 1024
# The shortest padded prompt; longer ones are twice the one before.
_FIRST_LENGTH = 64
# Sessions for prompts kept at once; each holds what its operators need besides weights.
_MOST_KEPT = 3


class Graph:
    """One loaded graph, and the weights that are bound to it.

    Args:
        session: its session.
        bound: name of an input -> its weight on the device.
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


class Graphs(Protocol):
    """Gives the graph for a call."""

    def find(self, count: int, logit_count: int) -> Graph:
        """The graph for so many tokens and logits."""

    def choose_room(self, needed: int, capacity: int) -> int:
        """How many tokens buffers should hold."""


class AnyLength:
    """One graph that takes any number of tokens; buffers double as they fill."""

    def __init__(self, bundle: Bundle, load: Loader) -> None:
        (record,) = (r for r in bundle.manifest.graphs if r.name == MODEL)
        self._graph = Graph(load(bundle.path / record.file, {}), {})

    def find(self, count: int, logit_count: int) -> Graph:
        """Always the same."""
        return self._graph

    def choose_room(self, needed: int, capacity: int) -> int:
        """Doubled as often as needed."""
        room = _FIRST_ROOM
        while room < needed:
            room *= 2
        return min(room, capacity)


class FixedLengths:
    """A session for single tokens, and one for each length that prompts are padded to.

    They are many sessions of two graphs over the same weights in the device's memory.
    """

    def __init__(self, bundle: Bundle, load: Loader, memory: Memory) -> None:
        self._files = {r.name: bundle.path / r.file for r in bundle.manifest.graphs}
        self._room = bundle.manifest.context_length
        self._load, self._memory = load, memory
        self._mapped = bundle.path / WEIGHTS
        self._weights: dict[str, ort.OrtValue] = {}
        self._single = self._open(DECODE, 1, 1)
        self._prompts: OrderedDict[tuple[int, int], Graph] = OrderedDict()

    def find(self, count: int, logit_count: int) -> Graph:
        """That for the next length that suffices."""
        if count == 1:
            return self._single
        steps = self._choose_length(count)
        key = (steps, steps if logit_count > 1 else 1)
        if key not in self._prompts:
            self._prompts[key] = self._open(PREFILL, *key)
        self._prompts.move_to_end(key)
        if len(self._prompts) > _MOST_KEPT:
            self._prompts.popitem(last=False)
        return self._prompts[key]

    def choose_room(self, needed: int, capacity: int) -> int:
        """Always the whole context: shapes are fixed."""
        return self._room

    def _choose_length(self, count: int) -> int:
        steps = _FIRST_LENGTH
        while steps < count:
            steps *= 2
        return min(steps, self._room)

    def _open(self, part: str, steps: int, logit_count: int) -> Graph:
        dims = {STEPS: steps, LOGIT_COUNT: logit_count, ROOM: self._room}
        session = self._load(self._files[part], dims)
        return Graph(session, self._bind(session), steps, logit_count)

    def _bind(self, session: ort.InferenceSession) -> dict[str, ort.OrtValue]:
        """The weights that a session wants, each on the device once for all sessions."""
        raw = session.get_modelmeta().custom_metadata_map[BOUND_WEIGHTS]
        wanted = parse_bound_weights(json.loads(raw))
        for name, place in wanted.items():
            if name not in self._weights:
                mapped = np.memmap(self._mapped, place.dtype, "r", place.offset, place.shape)
                self._weights[name] = self._memory.upload(mapped)
        return {name: self._weights[name] for name in wanted}
