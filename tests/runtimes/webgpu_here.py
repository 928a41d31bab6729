"""Whether WebGPU can be executed on this machine; on Linux in software, by Mesa's lavapipe."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lfm2_deploy.child import call_in_child

PROVIDER = "WebGpuExecutionProvider"
PLUGIN = "onnxruntime_ep_webgpu"
# Where systems put Vulkan's drivers (Vulkan loader, LoaderDriverInterface.md).
_FOLDERS = (Path("/usr/share/vulkan/icd.d"), Path("/usr/local/share/vulkan/icd.d"))
_FOLDERS += (Path("/etc/vulkan/icd.d"),)
_CHOSEN = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_HOW = "pip install -e '.[webgpu]', and on Linux sudo scripts/set_up_software_vulkan.sh"


def choose_adapter() -> Mapping[str, str]:
    """Environment for lavapipe, wherever it is and nothing else was chosen.

    It must be there before the provider's library is loaded.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return {}
    drivers = [file for folder in _FOLDERS for file in sorted(folder.glob("lvp_icd*.json"))]
    if not drivers:
        return {}
    allowed = {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
    return {**dict.fromkeys(_CHOSEN, str(drivers[0])), **allowed}


@functools.cache
def explain_absence() -> str:
    """Why WebGPU cannot be executed here; "" where it can. Call it with the environment set."""
    if importlib.util.find_spec(PLUGIN) is None:
        return f"there is no package {PLUGIN.replace('_', '-')}: {_HOW}"
    answer = call_in_child("runtimes.device_check", "check_device", PROVIDER, 0, seconds=120.0)
    if answer.value is None:
        return f"{answer.failure}: {_HOW}"
    return "" if answer.value["runs"] else f"{answer.value['reason']}: {_HOW}"


@pytest.fixture(scope="module")
def webgpu() -> Iterator[None]:
    """Skip where WebGPU cannot be executed; otherwise children have an adapter."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in choose_adapter().items():
            patch.setenv(name, value)
        # Where children find `webgpu_work`.
        patch.syspath_prepend(str(Path(__file__).parent))
        missing = explain_absence()
        if missing:
            pytest.skip(f"NOT RUN: {missing}")
        yield
