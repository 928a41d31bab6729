"""Whether a device that ONNX Runtime lists really runs a graph. Call it in a child process.

A provider that fails prints a warning and hands its nodes to the CPU, so that falling back is
forbidden here, placement is recorded, and the result is compared.
"""

from __future__ import annotations

import re
from typing import Any

import onnxruntime as ort

from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes import tiny_graph, windows_ml
from runtimes.ort_plugins import (
    ProviderDevice,
    list_devices,
    list_failures,
    list_libraries,
    list_loaded,
    shorten,
)

CPU = "CPUExecutionProvider"
# What onnxruntime puts before the words that say something: codes, source files, functions.
_PREAMBLE = re.compile(r".*(?:\bFAIL\b|\bwas false\.|\bERROR\b|lambda\(\)>?)\s*:?\s*", re.DOTALL)
_MOST_WORDS = 200
# Provider -> target, of those whose bundles compute in float16, but for fp32.
HALF = {"WebGpuExecutionProvider": "webgpu", "DmlExecutionProvider": "directml"}
# What a provider cannot do without.
_OPTIONS = {"QNNExecutionProvider": {"backend_type": "htp"}}


def list_provider_names() -> dict[str, Any]:
    """`version`, and `libraries`: the providers whose library is here. Nothing is loaded."""
    return {"version": ort.__version__, "libraries": list(list_libraries())}


def list_providers(only: str | None = None) -> dict[str, Any]:
    """What ONNX Runtime lists here; nothing is run.

    Args:
        only: load no other library than this provider's; "" for none; None for all.

    Returns:
        `version`; `devices`: provider, index, name, kind, is_software and description of each;
        `failures`: provider -> why its library does not load; `packages`: provider -> what
        brings its library; `offered`: providers that Windows ML would download.
    """
    failures = list_failures() if only is None else list_failures([only] if only else [])
    return {
        "version": ort.__version__,
        "devices": [_record(device) for device in list_loaded()],
        "failures": failures,
        "packages": {name: library.package for name, library in list_libraries().items()},
        "offered": [o.provider for o in windows_ml.list_offers() if not o.ready],
    }


def _record(device: ProviderDevice) -> dict[str, Any]:
    return {
        "provider": device.provider,
        "index": device.index,
        "name": device.name,
        "kind": device.kind,
        "is_software": device.is_software,
        "description": device.description or device.vendor,
    }


def check_device(provider: str, index: int = 0) -> dict[str, Any]:
    """Run the tiny graph on a device, and nowhere else; for GPUs in float16, too.

    Args:
        provider: such as "WebGpuExecutionProvider".
        index: among that provider's devices.

    Returns:
        `runs`: in float32, and `reason`: why it does not, or how it is known that it does, and
        whether it lacks float16.
    """
    try:
        devices = list_devices(provider)
    except RuntimeUnavailableError as error:
        return {"runs": False, "reason": str(error)}
    device = next((found for found in devices if found.index == index), None)
    if device is None:
        return {"runs": False, "reason": f"{shorten(provider)}.{index} is not listed any more"}
    try:
        reason = run_tiny_graph(device)
    except Exception as error:
        return {"runs": False, "reason": shorten_reason(str(error))}
    lack = find_half_lack(device)
    return {"runs": True, "reason": reason if lack is None else f"{reason}; it {lack}"}


def find_half_lack(device: ProviderDevice) -> str | None:
    """Why a device that runs the float32 graph does not serve most bundles, with the way on.

    None where it runs the float16 graph, or its provider's bundles need none.
    """
    if device.provider not in HALF:
        return None
    try:
        run_tiny_graph(device, half=True)
    except Exception as error:
        return (
            "computes float32 but not float16, which every precision but fp32 needs: export with "
            f"--target {HALF[device.provider]} --precision fp32 ({shorten_reason(str(error))})"
        )
    return None


def run_tiny_graph(device: ProviderDevice, half: bool = False) -> str:
    """Run the tiny graph on a device.

    Args:
        device: where it must run.
        half: in float16; else in float32.

    Returns:
        How it is known to have run there.

    Raises:
        RuntimeError: it ran elsewhere, or computed something else. Others are onnxruntime's.
    """
    session = _open(device, tiny_graph.HALF_GRAPH if half else tiny_graph.GRAPH)
    given = tiny_graph.make_half_input() if half else tiny_graph.make_input()
    (result,) = session.run([tiny_graph.OUTPUT], {tiny_graph.INPUT: given})
    fault = tiny_graph.find_fault(result)
    if fault is not None:
        raise RuntimeError(fault)
    return _check_placement(session, device.provider)


def _open(device: ProviderDevice, graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Warnings say why a provider failed; they are kept by whoever started this process.
    options.log_severity_level = 2
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device.provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if device.provider == "DmlExecutionProvider":
        # DirectML takes no others.
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if device.handle is None:
        chosen = [(device.provider, _OPTIONS.get(device.provider, {}))]
        return ort.InferenceSession(graph, options, providers=chosen, enable_fallback=False)
    options.add_provider_for_devices([device.handle], _OPTIONS.get(device.provider, {}))
    return ort.InferenceSession(graph, options, enable_fallback=False)


def _check_placement(session: ort.InferenceSession, provider: str) -> str:
    if provider not in session.get_providers():
        raise RuntimeError("onnxruntime left it out of the session and used the CPU")
    # Not there before 1.24; empty for WebGPU where it is built in (onnxruntime-webgpu 1.27.0).
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    placed = [] if ask is None else list(ask())
    if not placed:
        return "ran a graph; falling back was forbidden"
    elsewhere = {part.ep_name for part in placed} - {provider}
    if elsewhere:
        raise RuntimeError(f"part of the graph ran on {', '.join(sorted(elsewhere))}")
    return "ran a graph, all of it placed there"


def shorten_reason(message: str) -> str:
    """Of onnxruntime's message, the words that say something, in one line."""
    text = " ".join(message.split())
    words = _PREAMBLE.sub("", text, count=1).strip(" .") or text
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]} ..."
