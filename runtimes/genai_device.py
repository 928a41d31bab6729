"""A device's name -> a model that onnxruntime-genai has loaded there, or one line why not.

Enters: a folder with genai_config.json and what the user calls the device. Leaves: `og.Model`.
Knows nothing of sessions.

A provider that the installed onnxruntime-genai or onnxruntime lacks is an error of genai's own,
and never the CPU (0.18.0: "... is not supported in this build"). But nodes for which a provider
has no kernel go to the CPU without a word, so `session.disable_cpu_ep_fallback` forbids that.
`og.is_webgpu_available()` and the like only say what genai was compiled to ask for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.words import suggest
from runtimes.ort_plugins import list_libraries

VERSION = og.__version__
CPU = "cpu"
_FATAL = 4


@dataclass(frozen=True, slots=True)
class GenaiDevice:
    """A provider of onnxruntime-genai.

    Args:
        name: what users type.
        provider: what `og.Config.append_provider` takes.
        library: onnxruntime's name of a provider that may come as a package of its own; "" where
            it is built into a wheel.
        brings: what to install.
    """

    name: str
    provider: str
    library: str
    brings: str


DEVICES = {
    device.name: device
    for device in (
        GenaiDevice(CPU, "", "", "onnxruntime-genai"),
        GenaiDevice("cuda", "cuda", "", "onnxruntime-genai-cuda in place of onnxruntime-genai"),
        GenaiDevice(
            "directml", "DML", "", "onnxruntime-genai-winml in place of onnxruntime-genai (Windows)"
        ),
        GenaiDevice("webgpu", "WebGPU", "WebGpuExecutionProvider", "onnxruntime-ep-webgpu"),
        GenaiDevice("openvino", "OpenVINO", "OpenVINOExecutionProvider", "onnxruntime-ep-openvino"),
        GenaiDevice("qnn", "QNN", "QNNExecutionProvider", "onnxruntime-qnn"),
        GenaiDevice("nvtensorrtrtx", "NvTensorRtRtx", "", "onnxruntime-genai-winml (Windows)"),
    )
}
_ALIASES = {"dml": "directml", "gpu": "cuda", "nvidia": "cuda", "intel": "openvino"}
# Provider -> whether its library was registered, in this process.
_registered: set[str] = set()


def find_device(asked: str | None) -> GenaiDevice:
    """What a user's word stands for.

    Raises:
        RuntimeUnavailableError: onnxruntime-genai has no such device.
    """
    name = (asked or CPU).lower()
    device = DEVICES.get(_ALIASES.get(name, name))
    if device is None:
        raise RuntimeUnavailableError(
            f"onnxruntime-genai has no device {asked!r}{suggest(name, DEVICES) or ':'} choose "
            f"among {', '.join(DEVICES)}"
        )
    return device


def load_model(folder: Path, device: GenaiDevice, threads: int | None) -> Any:
    """Load a folder's graph on a device.

    Args:
        folder: holds genai_config.json.
        device: of `DEVICES`.
        threads: of one operator on the CPU; None for one on each physical core.

    Returns:
        An `og.Model`.

    Raises:
        RuntimeUnavailableError: what is installed lacks the device, or the device some of the
            graph's operators.
        BundleError: genai does not take the folder.
    """
    try:
        config = og.Config(str(folder))
        config.overlay(json.dumps(_make_overlay(device, threads)))
        if device.provider:
            config.clear_providers()
            _register(device)
            config.append_provider(device.provider)
        return og.Model(config)
    except Exception as error:
        reason = " ".join(str(error).split())
        if device.name == CPU:
            raise BundleError(
                f"onnxruntime-genai {VERSION} cannot load {folder}: {reason}; export the model "
                "again with --target cpu"
            ) from error
        raise RuntimeUnavailableError(_explain(device, reason)) from error


def _make_overlay(device: GenaiDevice, threads: int | None) -> dict[str, Any]:
    # Errors are raised; onnxruntime would print them a second time.
    options: dict[str, Any] = {"log_severity_level": _FATAL}
    if threads is not None:
        options["intra_op_num_threads"] = threads
    if device.name == CPU:
        # As `ort_options` has them, for its reasons.
        options |= {
            "enable_cpu_mem_arena": False,
            "enable_mem_pattern": False,
            "session.force_spinning_stop": "1",
        }
    else:
        options["session.disable_cpu_ep_fallback"] = "1"
    return {"model": {"decoder": {"session_options": options}}}


def _register(device: GenaiDevice) -> None:
    """Make a provider known that comes as a package of its own, where one is installed."""
    library = list_libraries().get(device.library)
    if library is None or device.provider in _registered:
        return
    og.register_execution_provider_library(device.provider, library.find())
    _registered.add(device.provider)


def _explain(device: GenaiDevice, reason: str) -> str:
    installed = sorted({*packages_distributions().get("onnxruntime_genai", [])})
    where = f"{' and '.join(installed) or 'onnxruntime-genai'} {VERSION}"
    if "fallback to CPU EP" in reason:
        return (
            f"{where} would leave operators of this graph to the CPU, which {device.name} has no "
            "kernels for: run it on the CPU (--device genai:cpu), or export the model for that "
            "device (--target auto)"
        )
    remedy = f"install {device.brings}"
    if device.provider in _registered:
        remedy = "its provider is installed; `lfm2-deploy doctor` says which devices it finds"
    return f"{where} does not run on {device.name} here ({reason}): {remedy}"
