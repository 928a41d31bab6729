"""OpenVINO on NPU, GPU and CPU: a bundle's graphs, compiled for the device that was asked for."""

from __future__ import annotations

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, RuntimeInfo, Session
from lfm2_deploy.errors import GenerationError, RuntimeUnavailableError
from lfm2_deploy.imported import LEFT_PADDING, TRAITS
from lfm2_deploy.session_checks import check_session
from runtimes.ov_device import Device, describe_driver, find_device
from runtimes.ov_stateful import StatefulModel
from runtimes.ov_static import load_static
from runtimes.separate_rows import SeparateRows
from runtimes.static_session import StaticModel

# Where a bundle runs that does not say otherwise.
_HOME = {"npu": "npu", "igpu": "gpu", "openvino-cpu": "cpu"}


def load(bundle: Bundle, *, threads: int | None = None, device: str | None = None) -> OvRuntime:
    """Load a bundle made for target `npu`, `igpu` or `openvino-cpu`.

    Args:
        bundle: the opened bundle.
        threads: threads of what runs on the CPU; None for OpenVINO's choice.
        device: "npu", "gpu" (or "gpu.1") or "cpu"; None for the bundle's own. The graphs
            are the same everywhere, so an NPU's can be tried on a CPU.

    Raises:
        RuntimeUnavailableError: the bundle is for another runtime, or there is no such device.
        BundleError: the device's plugin refuses a graph.
    """
    manifest = bundle.manifest
    if manifest.runtime != "openvino" or manifest.target not in _HOME:
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {manifest.runtime!r}, this is 'openvino'; "
            "export the model with --target npu, igpu or openvino-cpu"
        )
    _refuse_npu(bundle, device)
    return OvRuntime(
        bundle, find_device(_HOME[manifest.target] if device is None else device), threads
    )


def _refuse_npu(bundle: Bundle, device: str | None) -> None:
    """Imported graphs are for CPUs and GPUs: an NPU would want fixed shapes, and pad.

    Raises:
        RuntimeUnavailableError: an NPU was asked for.
    """
    record = bundle.manifest.imported
    if record is None or device is None or device.partition(".")[0] != "npu":
        return
    fault = f": {TRAITS[LEFT_PADDING]}" if LEFT_PADDING in record.traits else ""
    raise RuntimeUnavailableError(
        f"{bundle.path} was imported and is not run on an NPU{fault}; export the model itself with "
        "`lfm2-deploy export --target npu`"
    )


class OvRuntime:
    """`contracts.Runtime` on OpenVINO's compiled models."""

    def __init__(self, bundle: Bundle, device: Device, threads: int | None) -> None:
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        is_static = bundle.manifest.target == "npu"
        make = load_static if is_static else StatefulModel
        self._model: StaticModel | StatefulModel | None = make(bundle, device, threads)
        proposal = self._model.max_proposal
        chunk = bundle.manifest.chunk
        # Of the NPU's graphs the look-up of embeddings is one of its own.
        capabilities = Capabilities(
            True, True, 0, True, proposal, chunk, takes_embeddings=is_static
        )
        self.info = RuntimeInfo(
            "openvino",
            device.describe(),
            capabilities,
            driver=describe_driver(device),
            arithmetic=self._model.arithmetic,
        )

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`.

        A graph takes one row at a time, so each row has states of its own.
        """
        if self._model is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        capacity = check_session(batch_size, capacity, self.context_length)
        rows = [self._model.open(capacity) for _ in range(batch_size)]
        if batch_size == 1:
            return rows[0]
        width = self.config.hidden_size if self.info.capabilities.takes_embeddings else 0
        return SeparateRows(rows, self.config.vocab_size, self._model.max_proposal, width)

    def close(self) -> None:
        """Free the weights."""
        self._model = None
