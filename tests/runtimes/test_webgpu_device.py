"""Which GPU WebGPU is asked for: one can be named, of several only a preference can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes import ort_plugins, webgpu_device
from runtimes.ort_plugins import ProviderDevice
from runtimes.webgpu_device import PROVIDER, choose_device

NVIDIA = ProviderDevice(PROVIDER, 0, "gpu", "NVIDIA", 1, 2, "GeForce RTX 4070", False)
INTEL = ProviderDevice(PROVIDER, 1, "gpu", "Intel", 1, 2, "Arc 140V", False)
EMULATION = ProviderDevice(PROVIDER, 0, "cpu", "AMD", 1, 2, "", True)

Have = Callable[..., None]


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Have:
    """Put devices into this machine, and adapters into its Vulkan."""

    def put(*devices: ProviderDevice, adapters: list[dict[str, object]] | None = None) -> None:
        for module in (ort_plugins, webgpu_device):
            monkeypatch.setattr(module, "list_devices", lambda provider: list(devices))
        monkeypatch.setattr(ort_plugins, "is_built_in", lambda provider: True)
        found = {"adapters": adapters or [], "problems": []}
        monkeypatch.setattr(webgpu_device, "examine_vulkan", lambda: found)

    return put


@pytest.mark.parametrize("asked", [None, "gpu", "webgpu", "nvidia", "webgpu.0"])
def test_only_gpu_is_found_by_any_name(asked: str | None, have: Have) -> None:
    have(NVIDIA)
    chosen = choose_device(asked)
    assert (chosen.device, chosen.settings, chosen.notes) == (NVIDIA, {}, ())


@pytest.mark.parametrize("asked", ["intel", "webgpu.1"])
def test_name_among_several_gpus_is_refused_since_webgpu_chooses(asked: str, have: Have) -> None:
    # It printed the name, and another GPU might have run.
    have(NVIDIA, INTEL)
    with pytest.raises(RuntimeUnavailableError, match="high-performance or low-power"):
        choose_device(asked)


def test_several_gpus_are_told_and_a_preference_is_handed_on(have: Have) -> None:
    have(NVIDIA, INTEL)
    assert "one of webgpu.0" in choose_device(None).description
    assert choose_device("low-power").settings == {"powerPreference": "low-power"}


def test_emulation_says_that_it_computes_on_the_cpu(have: Have) -> None:
    have(EMULATION)
    (note,) = choose_device(None).notes
    assert "computes on the CPU" in note


def test_gpu_that_vulkan_does_not_have_is_called_what_stands_in(have: Have) -> None:
    # Linux may list a GPU whose Vulkan driver is missing; lavapipe then runs instead.
    have(NVIDIA, adapters=[{"name": "llvmpipe", "is_software": True}])
    chosen = choose_device(None)
    assert chosen.description == "webgpu (software, llvmpipe)"
    assert chosen.notes
    have(replace(NVIDIA, is_software=None), adapters=[{"name": "RTX", "is_software": False}])
    assert choose_device(None).notes == ()
