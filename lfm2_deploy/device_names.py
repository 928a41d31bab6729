"""A name that `--device` was given and a bundle does not take -> what to do about it.

Knows what devices are called and which targets are for them, not which devices are here.
"""

from __future__ import annotations

from collections.abc import Sequence

from lfm2_deploy.words import suggest

_ANY_GPU = "webgpu or directml"
# Names of devices, also of makers, and the targets that a model is exported for to run there.
_TARGETS = {
    "cpu": "cpu or openvino-cpu",
    "gpu": "igpu, webgpu or directml",
    "npu": "npu (Intel) or qnn (Qualcomm)",
    "emulator": "qnn",
    **dict.fromkeys(("nvidia", "cuda", "geforce", "rtx", "amd", "radeon", "rocm"), _ANY_GPU),
    **dict.fromkeys(("vulkan", "metal", "webgpu", "high-performance", "low-power"), "webgpu"),
    **dict.fromkeys(("directml", "dml"), "directml"),
    "openvino": "igpu, npu or openvino-cpu",
    "intel": "igpu or npu",
    **dict.fromkeys(("qualcomm", "snapdragon", "qnn"), "qnn"),
}
_NO_GPUS = ("npu", "emulator", "qualcomm", "snapdragon", "qnn")
_COMMON = ("cpu", "gpu", "npu", "emulator", "nvidia", "amd", "high-performance", "low-power")


def is_device(name: str) -> bool:
    """Whether a name, or what stands before its number, is known as a device's."""
    return name.partition(".")[0] in _TARGETS


def tell_target(asked: str) -> str:
    """What is said of a device of another kind than GPUs: "; for npu export ...", or ""."""
    targets = _TARGETS.get(asked, "") if asked in _NO_GPUS else ""
    return f"; for {asked} export the model with --target {targets}" if targets else ""


def explain_device(asked: str, subject: str, takes: Sequence[str]) -> str:
    """Why a bundle does not run on a device, in one line.

    Args:
        asked: what the user wrote; "gpu.1" is one of several.
        subject: of what the line says that it cannot run there; its begin.
        takes: names that it takes.
    """
    targets = _TARGETS.get(asked.lower().partition(".")[0])
    if targets is None:
        known = takes if len(takes) > 1 else _COMMON
        near = suggest(asked, known) or ":"
        return f"there is no device {asked!r}{near} known are {', '.join(known)}"
    taken = f" (it takes {', '.join(takes)})" if len(takes) > 1 else ""
    return (
        f"{subject} cannot run on {asked!r}{taken}: export the model with --target auto, or for "
        f"that device with --target {targets}"
    )
