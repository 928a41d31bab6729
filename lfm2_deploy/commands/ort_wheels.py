"""The wheels that all install one module, onnxruntime's and genai's, and what each is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Each overwrites the others' files, and the one installed last wins; uninstalling one then
# leaves a module in pieces.
SHARED_IMPORTS = ("onnxruntime", "onnxruntime_genai")
# What each is for, here. The first of a module is what this package requires.
PURPOSES = {
    "onnxruntime": "the CPU, and provider plugins (onnxruntime-ep-webgpu, onnxruntime-qnn)",
    "onnxruntime-windowsml": "DirectML on Windows, and the CPU",
    "onnxruntime-directml": "DirectML on Windows, the last of its line",
    "onnxruntime-webgpu": "WebGPU built in, and the CPU",
    "onnxruntime-openvino": "nothing here: Intel devices run by the package openvino",
    "onnxruntime-gpu": "nothing here: no target is for CUDA",
    "onnxruntime-qnn": "Qualcomm NPUs, before 2.0, which is a plugin",
    "onnxruntime-genai": "the CPU, by runtime genai",
    "onnxruntime-genai-cuda": "NVIDIA GPUs, by runtime genai; it brings onnxruntime-gpu",
    "onnxruntime-genai-winml": "Windows ML and DirectML, by runtime genai",
    "onnxruntime-genai-directml": "nothing here: it ends with genai 0.14",
}


def find_conflicts(distributions: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Modules that several packages provide, with those packages.

    Args:
        distributions: import name -> packages, as `packages_distributions` gives them.
    """
    found = {
        module: sorted({name.lower() for name in distributions.get(module, [])})
        for module in SHARED_IMPORTS
    }
    return {module: providers for module, providers in found.items() if len(providers) > 1}


def explain_conflict(module: str, providers: Sequence[str]) -> str:
    """What is wrong, and how to repair it."""
    return (
        f"{', '.join(providers)} all install the module {module}, and the last one wins: "
        f"pip uninstall -y {' '.join(providers)}, all of them, then pip install one:"
    )


def explain_purpose(provider: str) -> str:
    """What a wheel is for, here."""
    return PURPOSES.get(provider, "not known here")
