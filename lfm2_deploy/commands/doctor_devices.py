"""What `doctor` learns of devices: each is really tried, in a process of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from lfm2_deploy.child import Answer, call_in_child

# A first use may compile a driver's kernels.
_SECONDS = 30.0
_WORKERS = 4
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Time and source file before the words of a warning.
_PREFIX = re.compile(r"^.*?\[[WE]:[^\]]*\]\s*")
_TELLING = ("Failed to create", "failed with VK_", "no suitable")
_WINDOWS_GPU = "update the GPU's driver; it needs DirectX 12 (dxdiag says what there is)"
# By provider and system: what helps where a device is listed and does not run.
_REMEDIES = {
    ("DmlExecutionProvider", "win32"): _WINDOWS_GPU,
    ("WebGpuExecutionProvider", "win32"): _WINDOWS_GPU,
    ("WebGpuExecutionProvider", "linux"): "see Vulkan below",
}


def examine_ort(vulkan: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Every device that ONNX Runtime lists, and whether it runs a graph; None if not installed.

    Args:
        vulkan: as `examine_vulkan` gives it.

    Returns:
        `version`, `devices` (with `runs`, `reason` and `remedy`), `failures`, `offered`, and
        `failure`: why all this is not known, or None.
    """
    from lfm2_deploy.registry import ORT_DEVICES

    if ORT_DEVICES.missing():
        return None
    answer = call_in_child(ORT_DEVICES.module, ORT_DEVICES.attribute, seconds=_SECONDS)
    if answer.failure is not None:
        answer = _list_one_by_one(answer)
    if answer.failure is not None:
        return {"version": None, "devices": [], "failures": {}, "offered": []} | {
            "failure": explain(answer)
        }
    with ThreadPoolExecutor(_WORKERS) as pool:
        devices = list(pool.map(_check, _mark_software(answer.value["devices"], vulkan)))
    return {**answer.value, "devices": devices, "failure": None}


def _list_one_by_one(crashed: Answer) -> Answer:
    """The same where a library crashes or hangs: each is loaded in a process of its own."""
    from lfm2_deploy.registry import ORT_DEVICES, ORT_NAMES

    names = call_in_child(ORT_NAMES.module, ORT_NAMES.attribute, seconds=_SECONDS)
    if names.failure is not None:
        return crashed
    where = (ORT_DEVICES.module, ORT_DEVICES.attribute)
    listed = call_in_child(*where, "", seconds=_SECONDS)
    if listed.failure is not None:
        return listed
    for provider in names.value["libraries"]:
        answer = call_in_child(*where, provider, seconds=_SECONDS)
        if answer.failure is not None:
            listed.value["failures"][provider] = f"its library fails: {answer.failure}"
            continue
        known = [device["provider"] for device in listed.value["devices"]]
        devices = [d for d in answer.value["devices"] if d["provider"] not in known]
        listed.value["devices"] += devices
        listed.value["failures"] |= answer.value["failures"]
    return listed


def _mark_software(
    devices: Sequence[dict[str, Any]], vulkan: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Say of WebGPU what onnxruntime does not know: which adapter it will take."""
    adapters = vulkan["adapters"] if vulkan else []
    if not adapters or not all(adapter["is_software"] for adapter in adapters):
        return list(devices)
    known = {"is_software": True, "description": adapters[0]["name"]}
    webgpu = "WebGpuExecutionProvider"
    return [{**device, **known} if device["provider"] == webgpu else device for device in devices]


def _check(device: Mapping[str, Any]) -> dict[str, Any]:
    from lfm2_deploy.registry import ORT_CHECK

    where = (ORT_CHECK.module, ORT_CHECK.attribute, device["provider"], device["index"])
    answer = call_in_child(*where, seconds=_SECONDS)
    runs = answer.failure is None and bool(answer.value["runs"])
    remedy = None if runs else _REMEDIES.get((device["provider"], sys.platform))
    return {**device, "runs": runs, "reason": explain(answer), "remedy": remedy}


def explain(answer: Answer) -> str:
    """Why a device runs or not; a provider's own warning says more than what came of it."""
    if answer.failure is None and answer.value["runs"]:
        return str(answer.value["reason"])
    lines = [_PREFIX.sub("", _COLOUR.sub("", line)).strip() for line in answer.said]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    reason = answer.failure if answer.failure is not None else str(answer.value["reason"])
    return f"{reason} ({telling[0]})" if telling and telling[0] not in reason else reason


def examine_vulkan() -> dict[str, Any] | None:
    """Vulkan's adapters and what is in their way; None where nothing runs on Vulkan."""
    from lfm2_deploy.registry import VULKAN

    if not sys.platform.startswith("linux"):
        return None
    answer = call_in_child(VULKAN.module, VULKAN.attribute, seconds=_SECONDS)
    if answer.failure is not None:
        what = f"a Vulkan driver fails while adapters are listed: {answer.failure}"
        problem = {"what": what, "remedy": "install the GPU's driver again"}
        return {"adapters": [], "problems": [problem]}
    found: dict[str, Any] = answer.value
    return found


def examine_auto() -> list[dict[str, Any]]:
    """What `--target auto` would consider, for a dense model in int4."""
    from lfm2_deploy.auto import Wish, consider

    return [asdict(found) for found in consider(Wish())]
