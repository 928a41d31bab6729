"""ONNX Runtime on the CPU: a bundle's graph, loaded with what this machine has prepared for it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.device_names import explain_device
from lfm2_deploy.errors import BundleError, GenerationError, RuntimeUnavailableError
from lfm2_deploy.session_checks import check_session
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import EMBED
from runtimes.drivers import describe_cpu
from runtimes.ort_embedder import Embedder
from runtimes.ort_imported import ImportedRuntime
from runtimes.ort_options import PROVIDER, make_options
from runtimes.ort_rows import OrtRows
from runtimes.ort_session import OrtSession
from runtimes.prepared import find_prepared
from runtimes.separate_rows import SeparateRows

# More would rarely all be accepted, and each number of tokens keeps buffers of its own.
MAX_PROPOSAL = 16


def load(
    bundle: Bundle, *, threads: int | None = None, device: str | None = None
) -> OrtRuntime | ImportedRuntime:
    """Load a bundle made for target `cpu`.

    Args:
        bundle: the opened bundle.
        threads: threads of one operator; None for one on each physical core.
        device: "cpu" or None.

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime.
        BundleError: ONNX Runtime refuses the graph.
    """
    if bundle.manifest.runtime != "ort":
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {bundle.manifest.runtime!r}, this is 'ort'; "
            "export the model with --target cpu"
        )
    if device not in (None, "cpu"):
        raise RuntimeUnavailableError(
            explain_device(device, f"{bundle.path} was made for the CPU and", ("cpu",))
        )
    if bundle.manifest.imported is not None:
        return ImportedRuntime(bundle, _create_session(bundle, threads))
    return OrtRuntime(bundle, threads)


class OrtRuntime:
    """`contracts.Runtime` on one InferenceSession."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self.states: tuple[StateSpec, ...] = bundle.manifest.states
        self._session: ort.InferenceSession | None = _create_session(bundle, threads)
        self.embedder: Embedder | None = _load_embedder(bundle, threads)
        proposal = MAX_PROPOSAL if self._gives_windows() else 0
        # Floats are stored as float16 and computed in float32; integers get 8-bit activations.
        exact = bundle.manifest.precision in ("fp32", "fp16")
        self.info = RuntimeInfo(
            "ort",
            "cpu",
            Capabilities(
                *(True, True, 0, True, proposal),
                joins_rows=True,
                takes_embeddings=self.embedder is not None,
            ),
            driver=f"onnxruntime {ort.__version__}, {describe_cpu()}",
            arithmetic="float32" if exact else "int8",
        )
        self._agreement: dict[int, bool] = {}

    @property
    def session(self) -> ort.InferenceSession:
        """The loaded session.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self._session is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        return self._session

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`."""
        capacity = check_session(batch_size, capacity, self.context_length)
        if batch_size == 1 or self._rows_agree(batch_size):
            return OrtSession(self, batch_size, capacity)
        return self._open_apart(batch_size, capacity)

    def open_rows(self, most: int) -> OrtRows:
        """Places for rows that come and go; see `contracts.JoinsRows`."""
        return OrtRows(self, most, self.context_length)

    def _gives_windows(self) -> bool:
        """Whether the graph has what `propose` needs; bundles made before 0.2 do not."""
        outputs = {output.name for output in self.session.get_outputs()}
        return {spec.window for spec in self.states if spec.kind == "conv"} <= outputs

    def _open_apart(self, batch_size: int, capacity: int) -> SeparateRows:
        rows = [OrtSession(self, 1, capacity) for _ in range(batch_size)]
        able = self.info.capabilities
        width = self.config.hidden_size if able.takes_embeddings else 0
        return SeparateRows(rows, self.config.vocab_size, able.max_proposal, width)

    def _rows_agree(self, batch_size: int) -> bool:
        """Whether rows of such a batch come out bit for bit as they do alone.

        It depends on the model and on the machine: MoE and QMoE let rows disturb each
        other, and MatMulNBits in int4 sums in another order for one row than for several
        on AVX2 (and not on AVX-512; onnxruntime 1.32.0). So it is tried, once for each
        batch size, on a few tokens. Where embeddings come in, nothing can mark padding, so
        rows of several lengths are none that a call could take.
        """
        if self.config.moe is not None or self.embedder is not None:
            return False
        if batch_size not in self._agreement:
            self._agreement[batch_size] = self._try_rows(batch_size)
        return self._agreement[batch_size]

    def _try_rows(self, batch_size: int) -> bool:
        capacity = min(4, self.context_length)
        together = OrtSession(self, batch_size, capacity)
        apart = self._open_apart(batch_size, capacity)
        highest = self.config.vocab_size - 1
        # One to three tokens: one row alone takes a path of its own in many kernels.
        rows = [[(7 * row + i) % highest for i in range(1 + row % 3)] for row in range(batch_size)]
        rows = [row[: capacity - 1] or [0] for row in rows]
        if not np.array_equal(together.prefill(rows), apart.prefill(rows)):
            return False
        tokens = [row[-1] for row in rows]
        return capacity < 2 or np.array_equal(together.decode(tokens), apart.decode(tokens))

    def close(self) -> None:
        """Free the weights."""
        self._session = self.embedder = None


def _load_embedder(bundle: Bundle, threads: int | None) -> Embedder | None:
    """The look-up of embeddings, where the decoder takes them."""
    if EMBED not in {graph.name for graph in bundle.manifest.graphs}:
        return None
    return Embedder(_open_graph(bundle, bundle.find_graph(EMBED), threads))


def _create_session(bundle: Bundle, threads: int | None) -> ort.InferenceSession:
    prepared = None if bundle.manifest.imported else find_prepared(bundle)
    return _open_graph(bundle, prepared or bundle.graph, threads)


def _open_graph(bundle: Bundle, graph: Path, threads: int | None) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(os.fspath(graph), make_options(threads), providers=[PROVIDER])
    except Exception as error:
        reason = str(error).splitlines()[0]
        remedy = "export the model again with the installed versions"
        if bundle.manifest.imported is not None:
            remedy = "take another variant, or export the model itself with `lfm2-deploy export`"
        if graph.parent != bundle.path:
            remedy = f"run `lfm2-deploy prepare {bundle.path}` again, or with --remove"
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load {graph}: {reason}; {remedy}"
        ) from error
