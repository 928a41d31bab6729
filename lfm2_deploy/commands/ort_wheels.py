"""The wheels that all install the module `onnxruntime`, and which one is for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Each overwrites the others' files, and the one installed last wins; uninstalling one then
# leaves a module in pieces.
SHARED_IMPORT = "onnxruntime"
# What each is for, here. The first is what this package requires.
PURPOSES = {
    "onnxruntime": "the CPU, and provider plugins (onnxruntime-ep-webgpu, onnxruntime-qnn)",
    "onnxruntime-windowsml": "DirectML on Windows, and the CPU",
    "onnxruntime-directml": "DirectML on Windows, the last of its line",
    "onnxruntime-webgpu": "WebGPU built in, and the CPU",
    "onnxruntime-openvino": "nothing here: Intel devices run by the package openvino",
    "onnxruntime-gpu": "nothing here: no target is for CUDA",
    "onnxruntime-qnn": "Qualcomm NPUs, before 2.0, which is a plugin",
}


def find_conflicts(distributions: Mapping[str, list[str]]) -> list[str]:
    """Packages that all provide the module `onnxruntime`, where there are several.

    Args:
        distributions: import name -> packages, as `packages_distributions` gives them.
    """
    providers = sorted({name.lower() for name in distributions.get(SHARED_IMPORT, [])})
    return providers if len(providers) > 1 else []


def explain_conflict(providers: Sequence[str]) -> str:
    """What is wrong, and how to repair it."""
    return (
        f"{', '.join(providers)} all install the module {SHARED_IMPORT}, and the last one wins: "
        f"pip uninstall -y {' '.join(providers)}, all of them, then pip install one:"
    )


def explain_purpose(provider: str) -> str:
    """What a wheel is for, here."""
    return PURPOSES.get(provider, "not known here")
