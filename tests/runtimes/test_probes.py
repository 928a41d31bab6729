"""Probes of targets: what is there is tried, what computes on the CPU is passed over."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lfm2_deploy import auto
from lfm2_deploy.contracts import Probe
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import PROBES
from runtimes import device_check, ort_plugins, probes, vulkan
from runtimes.ort_plugins import ProviderDevice

WEBGPU = "WebGpuExecutionProvider"
LLVMPIPE = {"name": "llvmpipe", "is_software": True}
RADEON = {"name": "AMD Radeon 780M", "is_software": False}


def device(kind: str, is_software: bool | None, name: str = "some GPU") -> ProviderDevice:
    return ProviderDevice(WEBGPU, 0, kind, "", 0, 0, name, is_software, SimpleNamespace())


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine to furnish: what Vulkan lists, which devices, and what comes of running."""
    here = SimpleNamespace(adapters=[], problems=[], devices=[], outcome="ran a graph", half=None)

    def run(found: ProviderDevice, half: bool = False) -> str:
        outcome = here.half if half and here.half is not None else here.outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def list_devices(provider: str) -> list[ProviderDevice]:
        if isinstance(here.devices, Exception):
            raise here.devices
        return here.devices

    monkeypatch.setattr(
        vulkan, "examine_vulkan", lambda: {"adapters": here.adapters, "problems": here.problems}
    )
    monkeypatch.setattr(ort_plugins, "list_devices", list_devices)
    monkeypatch.setattr(device_check, "run_tiny_graph", run)
    return here


def test_every_own_probe_is_a_function_that_loads() -> None:
    for entry in PROBES.values():
        assert callable(entry.load())


def test_cpu_really_runs() -> None:
    found = auto.run_probe(PROBES["cpu"])
    assert found.available, found
    assert found.reason == "ran a graph, all of it placed there"


def test_openvino_s_cpu_really_runs() -> None:
    found = probes.probe_openvino("CPU")
    assert found.available, found
    assert found.checked == "ran a graph there"


def test_openvino_device_that_is_absent_is_not_available() -> None:
    found = probes.probe_openvino("NO_SUCH")
    assert not found.available
    assert "finds no NO_SUCH" in found.reason


def test_hardware_adapter_that_runs_is_available(machine: Any) -> None:
    machine.adapters, machine.devices = [LLVMPIPE, RADEON], [device("gpu", False)]
    assert probes.probe_webgpu() == Probe(True, "AMD Radeon 780M", "ran a graph", "ran a graph")


def test_software_adapter_alone_is_never_available(machine: Any) -> None:
    # The system shows a GPU, but Vulkan has no driver for it: WebGPU would take lavapipe.
    machine.adapters, machine.devices = [LLVMPIPE], [device("gpu", False)]
    found = probes.probe_webgpu()
    assert (found.available, found.device) == (False, "llvmpipe")
    assert found.reason == "a software adapter, which is never chosen"


def test_vulkan_without_a_driver_says_what_is_missing(machine: Any) -> None:
    machine.problems = [{"what": "Vulkan has no driver (ICD)", "remedy": "install it"}]
    found = probes.probe_webgpu()
    assert not found.available
    assert found.reason == "Vulkan has no driver (ICD)"


def test_built_in_webgpu_with_a_hardware_adapter_is_available(machine: Any) -> None:
    machine.adapters, machine.devices = [RADEON], [device("unknown", None)]
    assert probes.probe_webgpu().available


def test_device_of_unknown_kind_without_vulkan_is_not_trusted(machine: Any) -> None:
    machine.devices = [device("unknown", None)]
    found = probes.probe_webgpu()
    assert not found.available
    assert found.reason == "whether that is a GPU is not known"


def test_directml_on_warp_is_passed_over(machine: Any) -> None:
    machine.devices = [device("gpu", True)]
    assert not probes.probe_directml().available
    machine.devices = [device("gpu", True), device("gpu", False, "a real one")]
    assert "a real one" in probes.probe_directml().device


def test_qualcomm_emulator_is_passed_over(machine: Any) -> None:
    machine.devices = [device("cpu", True)]
    assert not probes.probe_qnn().available


@pytest.mark.parametrize("kind", ["gpu", "cpu", "unknown"])
def test_qualcomm_device_that_is_no_npu_is_passed_over(machine: Any, kind: str) -> None:
    machine.devices = [device(kind, False, "Adreno X1-85")]
    found = probes.probe_qnn()
    assert not found.available
    assert found.reason == "that is no NPU"
    machine.devices.append(device("npu", False, "Hexagon"))
    found = probes.probe_qnn()
    assert found.available
    assert "Hexagon" in found.device


def test_device_that_fails_says_why(machine: Any) -> None:
    machine.adapters, machine.devices = [RADEON], [device("gpu", False)]
    machine.outcome = RuntimeError("[X] : 1 : FAIL : device lost")
    found = probes.probe_webgpu()
    assert not found.available
    assert found.reason == "listed, but does not run: device lost"


@pytest.mark.parametrize("name", ["webgpu", "directml"])
def test_gpu_without_float16_is_not_available_and_fp32_is_named(machine: Any, name: str) -> None:
    provider = {"webgpu": WEBGPU, "directml": "DmlExecutionProvider"}[name]
    machine.adapters = [RADEON]
    machine.devices = [replace(device("gpu", False), provider=provider)]
    machine.half = RuntimeError("[X] : 1 : FAIL : shader-f16 is not supported")
    found = getattr(probes, f"probe_{name}")()
    assert (found.available, found.checked) == (False, "ran a graph")
    assert found.reason == (
        "computes float32 but not float16, which every precision but fp32 needs: export with "
        f"--target {name} --precision fp32 (shader-f16 is not supported)"
    )


def test_provider_that_is_not_installed_says_how_to_get_it(machine: Any) -> None:
    machine.devices = RuntimeUnavailableError("it is not here: pip install it")
    assert probes.probe_directml().reason == "it is not here: pip install it"
    machine.devices = []
    assert "finds no device" in probes.probe_directml().reason


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_ep_webgpu") is None,
    reason="onnxruntime-ep-webgpu is not installed",
)
def test_software_webgpu_of_this_machine_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = vulkan.examine_vulkan()["adapters"]
    if not adapters or not all(adapter["is_software"] for adapter in adapters):
        pytest.skip("Vulkan lists no software adapter here, or a GPU beside it")
    monkeypatch.setenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    found = auto.run_probe(PROBES["webgpu"])
    assert not found.available
    assert found.device == adapters[0]["name"]
    assert found.reason == "a software adapter, which is never chosen"
