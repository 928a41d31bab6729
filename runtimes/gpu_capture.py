"""One token by commands that the GPU's provider recorded once: graph capture.

A decoded token is some 200 small commands; recording saves the host from making them anew.
Every buffer must stay where it was, so what changes is written in place. One recording is made
for each direction of the conv buffers.

Recordings can be silently wrong: of LFM2 in float32, onnxruntime-ep-webgpu 0.4.0 replays the
attention's length of the first call. So `check_capture` compares with plain calls at load, and
where they differ nothing is captured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.gpu_graphs import LOGITS, TOTAL
from runtimes.gpu_inputs import list_inputs

if TYPE_CHECKING:
    from runtimes.gpu_graph import Graph
    from runtimes.gpu_model import GpuRuntime
    from runtimes.gpu_session import Model

# Set to 0, single tokens are computed by plain calls.
SWITCH = "LFM2_DEPLOY_GRAPH_CAPTURE"
_RECORDING = "gpu_graph_id"
# A call with this number is neither recorded nor replayed.
_NONE = "-1"
# Two to record, one in each direction, and the others replay.
_CHECKED_TOKENS = 6
# Of the largest logit: replays run the same kernels on the same numbers.
_TOLERANCE = 1e-3


class CapturedToken:
    """The decoding graph of one session, with every buffer fixed."""

    def __init__(
        self, runtime: Model, graph: Graph, bindings: Sequence[ort.IOBinding], room: int
    ) -> None:
        """Allocate what changes from call to call.

        Args:
            runtime: gives memory and numbers for recordings.
            graph: for one token.
            bindings: of states, for each direction.
            room: tokens that the buffers of keys and values hold.
        """
        memory = runtime.memory
        self._session, self._memory, self._bindings = graph.session, memory, bindings
        self._width = runtime.config.conv_state_width
        inputs = {k: v for k, v in self._list_inputs(0, 0).items() if k in graph.inputs}
        if runtime.total_on_host:
            # A recording holds what the host read; of one token only the buffers' size matters.
            total = ort.OrtValue.ortvalue_from_numpy(np.full_like(inputs.pop(TOTAL), room))
            for binding in bindings:
                binding.bind_ortvalue_input(TOTAL, total)
        self._inputs = {name: memory.upload(array) for name, array in inputs.items()}
        self._logits = memory.zeros((1, 1, runtime.config.vocab_size), "float32")
        for binding in bindings:
            for name, value in self._inputs.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(LOGITS, self._logits)
        self._numbers = [next(runtime.capture_ids) for _ in bindings]

    def run(self, turn: int, token: int, held: int) -> FloatArray:
        """Append a token to `held` ones; returns logits [1, V]."""
        for name, array in self._list_inputs(token, held).items():
            if name in self._inputs:
                self._memory.write(self._inputs[name], array)
        options = _number(str(self._numbers[turn]))
        self._session.run_with_iobinding(self._bindings[turn], options)
        logits: FloatArray = self._memory.read(self._logits)[0]
        return logits

    def _list_inputs(self, token: int, held: int) -> dict[str, NDArray[Any]]:
        return list_inputs([token], held, [0], steps=1, logit_count=1, conv_width=self._width)

    def __del__(self) -> None:
        # Recordings hold buffers of their own.
        release = getattr(self._session, "release_captured_graph", None)
        if release is not None:
            for number in self._numbers:
                release(number)


def uncaptured(can_capture: bool) -> ort.RunOptions | None:
    """Options of a plain call; a session that could record must be told not to."""
    return _number(_NONE) if can_capture else None


def _number(number: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(_RECORDING, number)
    return options


def check_capture(runtime: GpuRuntime) -> None:
    """Stop capturing where replayed tokens are not those of plain calls, or a user wants none."""
    if os.environ.get(SWITCH) == "0":
        runtime.captures = False
    if not runtime.captures:
        return
    tokens = [n % runtime.config.vocab_size for n in range(1, _CHECKED_TOKENS + 1)]
    capacity = min(_CHECKED_TOKENS, runtime.context_length)
    try:
        replayed = _decode(runtime, tokens[:capacity], capacity)
    except Exception:  # the provider refuses to record: plain calls do
        runtime.captures = False
        return
    runtime.captures = False
    plain = _decode(runtime, tokens[:capacity], capacity)
    runtime.captures = bool(np.abs(replayed - plain).max() <= _TOLERANCE * np.abs(plain).max())


def _decode(runtime: GpuRuntime, tokens: Sequence[int], capacity: int) -> FloatArray:
    session = runtime.open(1, capacity)
    return np.concatenate([session.decode([token]) for token in tokens])
