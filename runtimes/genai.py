"""onnxruntime-genai on bundles with a genai_config.json, behind our own Runtime.

The graph is the CPU bundle's, and so are its tokens; see `genai_device` for where it runs and
`genai_session` for what genai can do. For people who have genai in their application already and
want to see there what its logits give, and for comparisons.

Executed with onnxruntime-genai 0.18.0 on the CPU. CUDA, DirectML, OpenVINO, QNN and TensorRT were
not: there was no such device. WebGPU was, on a software adapter, where this graph is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime as ort

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.errors import GenerationError, RuntimeUnavailableError
from lfm2_deploy.session_checks import check_session
from runtimes.drivers import describe_cpu
from runtimes.genai_device import CPU, VERSION, GenaiDevice, find_device, load_model
from runtimes.genai_session import GenaiSession
from runtimes.separate_rows import SeparateRows

CONFIG = "genai_config.json"
_RUNTIME = "genai"
# genai takes and clears memory for all tokens a row may hold where past and present share it: of
# LFM2-350M's 32,768 tokens 805 MB, for each session. Where it would take more than this, keys and
# values grow with the row instead, and each token copies them.
MOST_SHARED_BYTES = 256 * 1024 * 1024


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> GenaiRuntime:
    """Load a bundle that carries a genai_config.json.

    Args:
        bundle: the opened bundle; one for target `cpu` has the file.
        threads: threads of one operator; None for one on each physical core.
        device: "cpu" or None, "cuda", "directml", "webgpu", "openvino", "qnn" or
            "nvtensorrtrtx"; it runs there whole or not at all.

    Raises:
        RuntimeUnavailableError: the bundle has no such file, or there is no such device.
        BundleError: genai does not take the bundle.
    """
    if not (bundle.path / CONFIG).is_file():
        raise RuntimeUnavailableError(
            f"{bundle.path} is for target {bundle.manifest.target!r} and has no {CONFIG}, which "
            "onnxruntime-genai needs: make a bundle with `lfm2-deploy export MODEL --target cpu`"
        )
    found = find_device(device)
    return GenaiRuntime(bundle, load_model(bundle.path, found, threads), found)


class GenaiRuntime:
    """`contracts.Runtime` on one `og.Model`."""

    def __init__(self, bundle: Bundle, model: Any, device: GenaiDevice) -> None:
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self._kv_bytes_per_token = sum(
            math.prod(state.concrete_shape(1, 1)) * np.dtype(state.dtype).itemsize
            for state in bundle.manifest.states
            if state.kind != "conv"
        )
        self._model: Any = model
        exact = bundle.manifest.precision in ("fp32", "fp16")
        on_cpu = device.name == CPU
        self.info = RuntimeInfo(
            _RUNTIME,
            device.name,
            # Rows are sessions of their own, so there may be any number.
            Capabilities(appends_many=True, rewinds=False, max_batch_size=0, scores_all=False),
            driver=f"onnxruntime-genai {VERSION}, onnxruntime {ort.__version__}, {describe_cpu()}",
            # Elsewhere it is the provider's choice.
            arithmetic=("float32" if exact else "int8") if on_cpu else "",
        )

    @property
    def model(self) -> Any:
        """The loaded model.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self._model is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        return self._model

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`."""
        assert self.model is not None
        room = check_session(batch_size, capacity, self.context_length)
        rows = [self._open_row(room) for _ in range(batch_size)]
        return rows[0] if batch_size == 1 else SeparateRows(rows, self.config.vocab_size)

    def _open_row(self, capacity: int) -> GenaiSession:
        shares = capacity * self._kv_bytes_per_token <= MOST_SHARED_BYTES
        return GenaiSession(lambda: self.model, self.config, capacity, shares)

    def close(self) -> None:
        """Free the weights."""
        self._model = None
