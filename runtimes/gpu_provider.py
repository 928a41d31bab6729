"""Graphs for GPUs -> sessions of which every node is on the device that was asked for.

ONNX Runtime hands nodes to the CPU where a provider fails or lacks an operator, with no more
than a warning. So falling back is forbidden, and where nodes lie is read back and checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from runtimes.device_check import shorten_reason
from runtimes.ort_plugins import ProviderDevice

CPU_PROVIDER = "CPUExecutionProvider"


def make_gpu_options(dims: Mapping[str, int]) -> ort.SessionOptions:
    """Session options that every GPU gets.

    Args:
        dims: name of a dimension -> its size, of those that are fixed.

    DirectML takes no memory patterns and no parallel execution; WebGPU does not need them.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    fix_dims(options, dims)
    return options


def fix_dims(options: ort.SessionOptions, dims: Mapping[str, int]) -> None:
    """Fix named dimensions of a graph."""
    for name, size in dims.items():
        options.add_free_dimension_override_by_name(name, size)


def load_graph(
    path: Path, device: ProviderDevice, options: ort.SessionOptions, settings: Mapping[str, str]
) -> ort.InferenceSession:
    """Load a graph on a device and nowhere else.

    Args:
        path: the ONNX file.
        device: where.
        options: from `make_gpu_options`.
        settings: the provider's own.

    Raises:
        BundleError: the provider refuses the graph, or leaves a node to the CPU.
        RuntimeUnavailableError: the provider was left out of the session.
    """
    try:
        session = _create(path, device, options, settings)
    except Exception as error:
        raise BundleError(
            f"{device.describe()} does not take {path} (onnxruntime {ort.__version__}: "
            f"{_shorten(error)}); `lfm2-deploy lint {path.parent}` looks for the reason, and "
            "`lfm2-deploy doctor` tells whether the device runs anything"
        ) from error
    check_placement(session, device.provider, path)
    return session


def _create(
    path: Path, device: ProviderDevice, options: ort.SessionOptions, settings: Mapping[str, str]
) -> ort.InferenceSession:
    file = os.fspath(path)
    if device.handle is None:
        chosen = [(device.provider, dict(settings))]
        return ort.InferenceSession(file, options, providers=chosen, enable_fallback=False)
    options.add_provider_for_devices([device.handle], dict(settings))
    return ort.InferenceSession(file, options, enable_fallback=False)


def check_placement(session: ort.InferenceSession, provider: str, path: Path) -> None:
    """Refuse a session of which the device does not run all.

    Raises:
        RuntimeUnavailableError: the provider is not in the session.
        BundleError: some of its nodes lie elsewhere.
    """
    if provider not in session.get_providers():
        raise RuntimeUnavailableError(
            f"onnxruntime {ort.__version__} left {provider} out of the session for {path}: "
            "`lfm2-deploy doctor` tells what is wrong with it"
        )
    elsewhere = {
        f"{node.op_type} ({part.ep_name})"
        for part in list_assignments(session)
        if part.ep_name != provider
        for node in part.get_nodes()
    }
    if elsewhere:
        raise BundleError(
            f"{provider} leaves nodes of {path} to others: {', '.join(sorted(elsewhere))}; "
            "export the model again"
        )


def list_assignments(session: ort.InferenceSession) -> list[ort.OrtEpAssignedSubgraph]:
    """Which provider has which nodes; empty where the provider does not tell.

    onnxruntime-webgpu 1.27.0 tells nothing, and there forbidding the CPU is what counts.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    return [] if ask is None else list(ask())


def load_graph_on_cpu(
    path: Path, dims: Mapping[str, int], threads: int | None
) -> ort.InferenceSession:
    """Load a GPU's graph on the CPU, to compare: the same operators, other kernels.

    Raises:
        BundleError: the CPU provider refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    fix_dims(options, dims)
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(os.fspath(path), options, providers=[CPU_PROVIDER])
    except Exception as error:
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load {path} on the CPU: {_shorten(error)}; "
            "export the model again"
        ) from error


def _shorten(error: Exception) -> str:
    return shorten_reason(str(error)) or type(error).__name__
