"""A bundle's graphs for a GPU, loaded by whichever provider; see `lfm2_deploy/gpu_graphs.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import onnxruntime as ort

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.errors import GenerationError, RuntimeUnavailableError
from lfm2_deploy.session_checks import check_session
from lfm2_deploy.states import StateSpec
from runtimes.gpu_graph import Graph
from runtimes.gpu_memory import Memory
from runtimes.gpu_routed import RoutedPrompt
from runtimes.gpu_session import GpuSession
from runtimes.gpu_shapes import Graphs
from runtimes.separate_rows import SeparateRows


class GpuRuntime:
    """`contracts.Runtime` on graphs for a GPU."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Graphs,
        memory: Memory,
        info: RuntimeInfo,
        captures: bool = False,
        total_on_host: bool = False,
    ) -> None:
        """Take over what was loaded.

        Args:
            bundle: the opened bundle.
            graphs: gives the graph for a call.
            memory: of the device that graphs run on.
            info: what this is and can do.
            captures: whether graphs were loaded to record and replay single tokens.
            total_on_host: whether the provider reads `total_sequence_length` on the CPU also
                where it records.
        """
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self.states: tuple[StateSpec, ...] = bundle.manifest.states
        self.memory, self.info = memory, info
        # Where recording is prepared for, a call must say whether it is one; see gpu_capture.
        self.can_capture = self.captures = captures
        self.total_on_host = total_on_host
        self.capture_ids: Iterator[int] = itertools.count(1)
        # Tokens of a prompt in one call; None for the session's choice. See gpu_prompts.
        self.prompt_chunk: int | None = None
        self._graphs: Graphs | None = graphs

    @property
    def graphs(self) -> Graphs:
        """The loaded graphs.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self._graphs is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        return self._graphs

    def graph(self, count: int, logit_count: int) -> Graph | RoutedPrompt:
        """The graph, or its parts, for a call of so many tokens and logits.

        Raises:
            GenerationError: the runtime was closed.
        """
        return self.graphs.find(count, logit_count)

    def choose_room(self, needed: int, capacity: int) -> int:
        """How many tokens a session's buffers should hold, to hold `needed` of them now."""
        return self.graphs.choose_room(needed, capacity)

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`.

        A graph takes one row at a time, so each row has states of its own.
        """
        capacity = check_session(batch_size, capacity, self.context_length)
        rows = [GpuSession(self, capacity) for _ in range(batch_size)]
        return rows[0] if batch_size == 1 else SeparateRows(rows, self.config.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self._graphs = None


def check_runtime(bundle: Bundle, runtime: str) -> None:
    """Refuse a bundle for another runtime; runtimes for GPUs are called as their targets.

    Raises:
        RuntimeUnavailableError: it is for another one.
    """
    if bundle.manifest.runtime != runtime:
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {bundle.manifest.runtime!r}, this is "
            f"{runtime!r}; export the model with --target {runtime}"
        )


def make_info(
    runtime: str,
    bundle: Bundle,
    device: str,
    driver: str,
    *,
    appends_many: bool,
    per_step: int = 16,
) -> RuntimeInfo:
    """What a runtime of such graphs can do.

    Args:
        runtime: its name.
        bundle: what it runs.
        device, driver: as `RuntimeInfo` has them; the version of onnxruntime is put before it.
        appends_many, per_step: as `Capabilities` has them.
    """
    able = Capabilities(
        appends_many=appends_many,
        rewinds=True,
        max_batch_size=0,
        scores_all=True,
        tokens_per_step=per_step,
    )
    exact = bundle.manifest.precision == "fp32"
    arithmetic = "float32" if exact else "float16"
    # On the CPU provider, kernels for integers round activations to 8 bits.
    if device == "cpu" and bundle.manifest.precision in ("int8", "int4"):
        arithmetic = "int8"
    return RuntimeInfo(
        runtime,
        device,
        able,
        driver=f"onnxruntime {ort.__version__}, {driver}",
        arithmetic=arithmetic,
    )
