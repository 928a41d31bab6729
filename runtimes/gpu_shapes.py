"""Which graph serves a call: one for any length, or one of fixed shapes for each of few lengths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.gpu_graphs import (
    DECODE,
    EXPERTS,
    LOGIT_COUNT,
    MODEL,
    PREFILL,
    ROOM,
    STEPS,
)
from runtimes.gpu_graph import BoundWeights, Graph, Loader
from runtimes.gpu_inputs import pad_logits
from runtimes.gpu_memory import Memory
from runtimes.gpu_routed import RoutedPrompt

# Tokens that a growing buffer of keys and values begins with.
_FIRST_ROOM = 1024
# The shortest padded prompt; longer ones are twice the one before.
_FIRST_LENGTH = 64
# Sessions for prompts kept at once; each holds what its operators need besides weights.
_MOST_KEPT = 3


# From this padded length on a mixture's prompts run in parts, routed by the host.
# benchmarks/experts.py counts: of 64 tokens that takes 1.2 times as long as all experts for all,
# of 128 tokens 0.6 times, of 512 0.2 to 0.3 times.
ROUTED_FROM = 128


class Graphs(Protocol):
    """Gives the graph for a call."""

    def find(self, count: int, logit_count: int) -> Graph | RoutedPrompt:
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

    They are many sessions of few graphs over the same weights in the device's memory.

    Args:
        bundle: the opened bundle.
        load: how a graph becomes a session.
        memory: of the device.
        routed_from: the padded length from which a mixture's prompts run in parts.
    """

    def __init__(
        self, bundle: Bundle, load: Loader, memory: Memory, routed_from: int = ROUTED_FROM
    ) -> None:
        self._files = {r.name: bundle.path / r.file for r in bundle.manifest.graphs}
        self._room = bundle.manifest.context_length
        self._load = load
        self._weights = BoundWeights(bundle.weights, memory)
        self._single = self._open(DECODE, 1, 1)
        self._prompts: OrderedDict[tuple[int, int], Graph | RoutedPrompt] = OrderedDict()
        self._bundle, self._memory = bundle, memory
        self._routed_from = routed_from if EXPERTS in self._files else self._room + 1

    def find(self, count: int, logit_count: int) -> Graph | RoutedPrompt:
        """That for the next length that suffices."""
        if count == 1:
            return self._single
        steps = self._choose_length(count)
        is_routed = steps >= self._routed_from
        key = (steps, 0 if is_routed else pad_logits(steps, logit_count))
        if key not in self._prompts:
            self._prompts[key] = (
                self._open_routed(steps) if is_routed else self._open(PREFILL, *key)
            )
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
        return self._open_part(part, {STEPS: steps, LOGIT_COUNT: logit_count})

    def _open_routed(self, steps: int) -> RoutedPrompt:
        config, dtype = self._bundle.config, self._bundle.manifest.states[0].dtype
        return RoutedPrompt(config, self._open_part, self._memory, dtype, steps)

    def _open_part(self, part: str, dims: Mapping[str, int]) -> Graph:
        session = self._load(self._files[part], {**dims, ROOM: self._room})
        weights = self._weights.find(session)
        return Graph(session, weights, dims[STEPS], dims.get(LOGIT_COUNT, 0))
