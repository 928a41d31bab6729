"""Provider libraries: found, registered once, their devices told apart."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.plugins import Plugin
from runtimes import ort_plugins, windows_ml
from runtimes.ort_plugins import find_device, list_devices, list_failures, register
from runtimes.windows_ml import Offer

WEBGPU = "WebGpuExecutionProvider"


def device(provider: str, kind: str, vendor: str, name: str = "", ids: tuple = (1, 2)) -> Any:
    """A device as onnxruntime 1.32.0 lists it."""
    hardware = SimpleNamespace(
        type=f"OrtHardwareDeviceType.{kind}",
        vendor=vendor,
        vendor_id=ids[0],
        device_id=ids[1],
        metadata={"Description": name} if name else {},
    )
    return SimpleNamespace(ep_name=provider, device=hardware)


class FakeOrt:
    """An onnxruntime with libraries that bring devices."""

    __version__ = "1.32.0"

    def __init__(self) -> None:
        self.registered: list[tuple[str, str]] = []
        self.brings: dict[str, list[Any]] = {}
        self.listed = [device("CPUExecutionProvider", "CPU", "AMD")]
        self.built_in = ["AzureExecutionProvider", "CPUExecutionProvider"]

    def get_available_providers(self) -> list[str]:
        return self.built_in

    def get_ep_devices(self) -> list[Any]:
        return self.listed

    def set_default_logger_severity(self, severity: int) -> None:
        pass

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if path == "/broken.so":
            raise RuntimeError("Failed to load library /broken.so\n  undefined symbol: x")
        self.registered.append((name, path))
        self.listed = self.listed + self.brings.get(name, [])


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    fake = FakeOrt()
    monkeypatch.setattr(ort_plugins, "ort", fake)
    monkeypatch.setattr(ort_plugins, "_registered", {})
    monkeypatch.setattr(ort_plugins, "KNOWN", {WEBGPU: ("fake_webgpu", "onnxruntime-ep-webgpu")})
    monkeypatch.setattr(ort_plugins, "list_plugins", lambda kind: ())
    monkeypatch.setattr(windows_ml, "list_offers", lambda: ())
    monkeypatch.setattr(windows_ml, "ensure_ready", lambda provider: None)
    return fake


Module = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Module:
    """Put a module there that gives the path of a library."""

    def add(name: str, path: str) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.get_library_path = lambda: path  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)

    return add


@pytest.fixture
def gpus(ort: FakeOrt, install: Module) -> FakeOrt:
    """WebGPU by a plugin, with two GPUs and an emulation."""
    install("fake_webgpu", "/webgpu.so")
    ort.brings[WEBGPU] = [
        device(WEBGPU, "GPU", "NVIDIA", "NVIDIA GeForce RTX 4070"),
        device(WEBGPU, "GPU", "Intel", "Intel(R) Arc(TM) Graphics"),
        device(WEBGPU, "CPU", "AMD"),
    ]
    return ort


def test_library_is_registered_once_under_the_provider_s_name(gpus: FakeOrt) -> None:
    list_devices(WEBGPU)
    register(WEBGPU)
    list_devices()
    assert gpus.registered == [(WEBGPU, "/webgpu.so")]


def test_devices_of_others_load_no_library(gpus: FakeOrt) -> None:
    assert [d.name for d in list_devices("CPUExecutionProvider")] == ["cpu.0"]
    assert gpus.registered == []


def test_devices_tell_kind_number_and_emulation(gpus: FakeOrt) -> None:
    found = [(d.name, d.kind, d.is_software) for d in list_devices()]
    assert found == [
        ("cpu.0", "cpu", False),
        ("webgpu.0", "gpu", False),
        ("webgpu.1", "gpu", False),
        ("webgpu.2", "cpu", True),
    ]


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (None, 0),
        ("webgpu", 0),
        ("WebGPU.1", 1),
        ("1", 1),
        ("nvidia", 0),
        ("arc", 1),
        ("webgpu.2", 2),
    ],
)
def test_device_is_found_by_index_or_name(asked: str | None, index: int, gpus: FakeOrt) -> None:
    found = find_device(WEBGPU, asked)
    assert found.index == index
    assert found.handle is gpus.listed[1 + index]


def test_hardware_comes_before_an_emulation_that_is_listed_first(gpus: FakeOrt) -> None:
    gpus.brings[WEBGPU].reverse()
    assert find_device(WEBGPU, None).index == 1
    assert find_device(WEBGPU, "webgpu.0").is_software is True


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("webgpu.7", "there is no device 'webgpu.7' for"),
        ("radeon", "there is no device 'radeon' for"),
        ("gpu", "several devices are 'gpu' for"),
        ("dml.0", "there is no device 'dml.0' for"),
    ],
)
def test_device_that_is_not_one_lists_them_all(asked: str, words: str, gpus: FakeOrt) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_device(WEBGPU, asked)
    assert words in str(caught.value)
    assert str(caught.value).endswith(
        "expected one of webgpu.0 (gpu, NVIDIA GeForce RTX 4070), "
        "webgpu.1 (gpu, Intel(R) Arc(TM) Graphics), webgpu.2 (cpu, software, an emulation)"
    )


def test_directml_goes_by_its_targets_name_and_warp_is_software(ort: FakeOrt) -> None:
    dml = "DmlExecutionProvider"
    ort.built_in = [dml, "CPUExecutionProvider"]
    ort.listed += [
        device(dml, "GPU", "AMD", "AMD Radeon(TM) 780M", (0x1002, 0x15BF)),
        device(dml, "GPU", "Microsoft", "", (0x1414, 0x8C)),
    ]
    assert find_device(dml, "directml.1").is_software is True
    assert find_device(dml, "directml").is_software is False


def test_built_in_provider_without_a_device_is_listed_as_unknown(ort: FakeOrt) -> None:
    ort.built_in = [WEBGPU, "CPUExecutionProvider"]
    found = list_devices(WEBGPU)
    assert [(d.name, d.kind, d.is_software, d.handle) for d in found] == [
        ("webgpu.0", "unknown", None, None)
    ]
    assert ort.registered == []


def test_library_that_does_not_load_is_told_with_its_error(ort: FakeOrt, install: Module) -> None:
    install("fake_webgpu", "/broken.so")
    (failure,) = list_failures().values()
    assert failure == (
        f"{WEBGPU} of package onnxruntime-ep-webgpu does not load with onnxruntime 1.32.0: Failed "
        "to load library /broken.so undefined symbol: x; "
        "pip install --upgrade onnxruntime-ep-webgpu"
    )
    assert [d.name for d in list_devices()] == ["cpu.0"]
    with pytest.raises(RuntimeUnavailableError, match="undefined symbol"):
        list_devices(WEBGPU)


@pytest.mark.usefixtures("ort")
@pytest.mark.parametrize(
    ("provider", "remedy"),
    [
        (WEBGPU, "pip install onnxruntime-ep-webgpu"),
        ("DmlExecutionProvider", "DirectML is a part of Windows"),
        ("AcmeExecutionProvider", "no package here brings it"),
    ],
)
def test_absent_provider_comes_with_its_remedy(provider: str, remedy: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=remedy):
        find_device(provider, None)


@pytest.mark.parametrize("value", ["acme_ep", "acme_ep:get_library_path"])
def test_entry_point_brings_a_provider(
    value: str, ort: FakeOrt, install: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = "AcmeExecutionProvider"
    install("acme_ep", "/acme.so")
    plugin = Plugin("ort provider", acme, "acme-ep", "1.0", value)
    monkeypatch.setattr(ort_plugins, "list_plugins", lambda kind: (plugin,))
    ort.brings[acme] = [device(acme, "NPU", "Acme", "Acme NPU")]
    assert find_device(acme, None).describe() == "acme.0 (npu, Acme NPU)"
    assert ort.registered == [(acme, "/acme.so")]


def test_entry_point_of_two_packages_is_an_error(
    ort: FakeOrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tuple(
        Plugin("ort provider", "AcmeExecutionProvider", name, "1.0", "x") for name in ("a", "b")
    )
    monkeypatch.setattr(ort_plugins, "list_plugins", lambda kind: both)
    assert "several packages, a and b" in list_failures()["AcmeExecutionProvider"]


def test_old_onnxruntime_without_libraries_says_so(
    ort: FakeOrt, install: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fake_webgpu", "/webgpu.so")
    monkeypatch.delattr(FakeOrt, "register_execution_provider_library")
    with pytest.raises(RuntimeUnavailableError, match="takes no provider libraries"):
        register(WEBGPU)


def test_windows_ml_is_asked_to_download_only_for_a_device_that_was_asked_for(
    ort: FakeOrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    vitis = "VitisAIExecutionProvider"
    offers = [Offer(vitis, "NotPresent", "")]
    downloaded = []

    def ensure_ready(provider: str) -> None:
        downloaded.append(provider)
        offers[:] = [Offer(vitis, "Ready", "/vitis.dll")]

    monkeypatch.setattr(windows_ml, "list_offers", lambda: tuple(offers))
    monkeypatch.setattr(windows_ml, "ensure_ready", ensure_ready)
    ort.brings[vitis] = [device(vitis, "NPU", "AMD", "AMD NPU")]
    list_devices()
    list_failures()
    with pytest.raises(RuntimeUnavailableError, match="downloads it when a device of it is asked"):
        list_devices(vitis)
    assert downloaded == []
    assert find_device(vitis, "npu").description == "AMD NPU"
    assert downloaded == [vitis]
    assert ort.registered == [(vitis, "/vitis.dll")]


def test_library_that_another_part_of_the_process_loaded_is_not_loaded_again(
    ort: FakeOrt, install: Module
) -> None:
    # onnxruntime 1.32 crashes where a library is registered twice.
    install("fake_webgpu", "/webgpu.so")
    ort.listed = [*ort.listed, device(WEBGPU, "GPU", "NVIDIA")]
    register(WEBGPU)
    assert ort.registered == []


def test_emulation_is_not_found_by_the_name_of_the_cpu_s_vendor(
    ort: FakeOrt, install: Module
) -> None:
    install("fake_webgpu", "/webgpu.so")
    ort.brings[WEBGPU] = [device(WEBGPU, "CPU", "AMD")]
    with pytest.raises(RuntimeUnavailableError, match="there is no device 'amd'"):
        find_device(WEBGPU, "amd")
    assert find_device(WEBGPU, "software").is_software
