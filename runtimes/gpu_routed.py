"""A long prompt of a mixture of experts: in parts, and in between tokens are sent to experts.

What a part gives to the next stays on the device. The host reads each router's scores, which is
what it waits for, and sends numbers of tokens and experts. It waits for nothing else: all sessions
of a device that Python makes by DirectML's name share one queue, so what one is given after
another runs after it (CreateProvider in dml_provider_factory.cc, onnxruntime 1.30: `python_api`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import onnxruntime as ort

from lfm2_deploy.config import Lfm2Config, MoeConfig
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.gpu_graphs import (
    ANSWERS,
    CHOSEN,
    EXPERTS,
    FIRST,
    HIDDEN,
    LAST,
    LOGIT_COUNT,
    LOGITS,
    PIECES,
    PLACES,
    PROBABILITIES,
    RESIDUAL,
    ROW_COUNT,
    ROWS,
    SCORES,
    STEPS,
    SUM,
    SUMMED,
    WEIGHTS,
    X,
    fill_in,
    name_answers,
    name_segment,
)
from runtimes.gpu_graph import Graph
from runtimes.gpu_memory import Array, Memory
from runtimes.routing import choose_experts, pick_places, plan_calls

# (name of a part, name of a dimension -> its size) -> the loaded part.
Opener = Callable[[str, Mapping[str, int]], Graph]
Values = Mapping[str, ort.OrtValue]

# Rows of a piece. Fewer save nothing, since an expert's weights are copied for each piece; more
# are mostly padding (benchmarks/experts.py --rows 16,32,64,128,256,512).
_FEWEST_ROWS, _MOST_ROWS = 16, 128


def choose_size(steps: int, moe: MoeConfig) -> int:
    """Rows of a piece: twice what an expert gets of so many tokens if all are as popular.

    So most experts get by with one piece each.
    """
    size, usual = _FEWEST_ROWS, steps * moe.num_experts_per_tok / moe.num_experts
    while size < min(2 * usual, _MOST_ROWS):
        size *= 2
    return size


class RoutedPrompt:
    """The parts for prompts of one padded length. Prompts take turns: buffers are shared."""

    def __init__(
        self, config: Lfm2Config, open_part: Opener, memory: Memory, dtype: str, steps: int
    ) -> None:
        """Load all parts but the last.

        Args:
            config: of a mixture.
            open_part: how a part is loaded.
            memory: of the device.
            dtype: numpy name of the type that parts compute in.
            steps: S.
        """
        assert config.moe is not None
        self.steps, self._moe, self._open = steps, config.moe, open_part
        self._size = choose_size(steps, config.moe)
        first, *others = config.moe_layers
        kinds = {layer: name_segment(config.layer_types[layer]) for layer in others}
        # Each with the layer whose experts come after it.
        self._segments = [(first, FIRST), *kinds.items()]
        dims = {STEPS: steps, ROW_COUNT: PIECES * self._size}
        self._parts = {
            name: open_part(name, dims) for name in {FIRST, EXPERTS, SUM, *kinds.values()}
        }
        shape = (1, steps, config.hidden_size)
        self._ends = {name: memory.zeros(shape, dtype) for name in (X, RESIDUAL)}
        self._sums = [memory.zeros(shape, dtype) for _ in range(2)]
        rows = (PIECES * self._size, config.hidden_size)
        self._answers = [memory.zeros(rows, dtype) for _ in range(SUMMED)]
        self._lock = threading.Lock()

    def run(
        self, inputs: Mapping[str, Array], states: Values, count: int, logit_count: int
    ) -> FloatArray:
        """Append a prompt.

        Args:
            inputs: from `list_inputs`, for S tokens.
            states: all states' values by name of input and of output.
            count: how many of the S are tokens.
            logit_count: K.

        Returns:
            logits, float32 [K, V].
        """
        with self._lock:
            values = {**states, **self._ends}
            for layer, part in self._segments:
                given = run_part(self._parts[part], layer, inputs, values)
                scores, probabilities = (given[name][0, :count] for name in (SCORES, PROBABILITIES))
                values[HIDDEN] = self._mix(layer, scores, probabilities)
            last = self._find_last(logit_count)
            logits: FloatArray = run_part(last, 0, inputs, values)[LOGITS][0]
        return logits

    def _mix(self, layer: int, scores: FloatArray, probabilities: FloatArray) -> ort.OrtValue:
        """Run a layer's experts; returns their sum with the residual, on the device."""
        chosen, weights = choose_experts(scores, probabilities, self._moe)
        calls, places = plan_calls(chosen, weights, pieces=PIECES, size=self._size)
        in_sum, source = SUMMED * PIECES * self._size, self._ends[RESIDUAL]
        for number, start in enumerate(range(0, len(calls), SUMMED)):
            for call, target in zip(calls[start : start + SUMMED], self._answers, strict=False):
                values = {X: self._ends[X], ANSWERS: target}
                inputs: dict[str, Array] = {
                    ROWS: call.rows,
                    WEIGHTS: call.weights,
                    CHOSEN: call.experts,
                }
                run_part(self._parts[EXPERTS], layer, inputs, values)
            own = pick_places(places, self.steps, number * in_sum, in_sum)
            values = {RESIDUAL: source, HIDDEN: self._sums[number % 2]}
            values |= {name_answers(n): value for n, value in enumerate(self._answers)}
            run_part(self._parts[SUM], layer, {PLACES: own}, values)
            source = values[HIDDEN]
        return source

    def _find_last(self, logit_count: int) -> Graph:
        name = f"{LAST}.{logit_count}"
        if name not in self._parts:
            dims = {STEPS: self.steps, LOGIT_COUNT: logit_count}
            self._parts[name] = self._open(LAST, dims)
        return self._parts[name]


def run_part(
    graph: Graph, layer: int, inputs: Mapping[str, Array], values: Values
) -> dict[str, Array]:
    """Run a graph, for one layer if it serves several.

    Args:
        graph: the part.
        layer: for EVERY_LAYER in names.
        inputs: on the host.
        values: on the device, where outputs of these names are put too.

    Returns:
        the other outputs, by name.
    """
    binding = graph.session.io_binding()
    for name in graph.inputs:
        own = fill_in(name, layer)
        if own in inputs:
            binding.bind_cpu_input(name, inputs[own])
        else:
            value = values[own] if own in values else graph.bound[own]
            binding.bind_ortvalue_input(name, value)
    names = [output.name for output in graph.session.get_outputs()]
    for name in names:
        own = fill_in(name, layer)
        if own in values:
            binding.bind_ortvalue_output(name, values[own])
        else:
            binding.bind_output(name, "cpu")
    graph.session.run_with_iobinding(binding)
    found = zip(names, binding.get_outputs(), strict=True)
    return {name: value.numpy() for name, value in found if fill_in(name, layer) not in values}
