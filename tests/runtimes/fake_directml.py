"""Sessions that behave as DirectML's do where these differ from the CPU's.

DirectML's GroupQueryAttention takes the past for empty when a call brings several tokens: they
attend to each other alone, and are written from the buffer's beginning
(DmlOperatorGroupQueryAttention.cpp, onnxruntime 1.30: `past := 0` unless S is 1). The CPU's
kernel does just that if it is told that there are no more tokens than the call brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lfm2_deploy.gpu_graphs import INPUT_IDS, POSITIONS, SEQLENS, TOTAL
from runtimes.gpu_provider import load_graph_on_cpu


class FakeBinding:
    """An IOBinding that remembers what was bound."""

    def __init__(self, binding: Any) -> None:
        self.binding, self.bound = binding, {}  # type: ignore[var-annotated]

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.bound[name] = array
        self.binding.bind_cpu_input(name, array)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.binding, name)


class FakeDirectMLSession:
    """One graph. `calls` lists (tokens brought, tokens there before)."""

    def __init__(self, session: ort.InferenceSession, calls: list[tuple[int, int]]) -> None:
        self._session, self._calls = session, calls

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self._session.io_binding())

    def run_with_iobinding(self, binding: FakeBinding, options: Any = None) -> None:
        if TOTAL not in binding.bound:  # a part without attention
            self._session.run_with_iobinding(binding.binding, options)
            return
        steps = binding.bound[POSITIONS].shape[1]
        held = int(binding.bound[TOTAL][0]) - steps
        real = int(binding.bound[SEQLENS][0]) + 1 - held
        if INPUT_IDS in binding.bound:  # not a later part of a prompt
            self._calls.append((real, held))
        if steps > 1:
            binding.binding.bind_cpu_input(TOTAL, np.array([steps], np.int32))
            binding.binding.bind_cpu_input(SEQLENS, np.array([real - 1], np.int32))
        self._session.run_with_iobinding(binding.binding, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class FakeDirectML:
    """Loads graphs as DirectML would."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def load(self, path: Path, dims: Mapping[str, int]) -> Any:
        return FakeDirectMLSession(load_graph_on_cpu(path, dims, threads=1), self.calls)
