"""Drivers as systems tell them. Windows' registry is a fake, as it was not checked there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes import drivers

# The tree as regedit shows it: "Properties" may not be read by everybody.
REGISTRY: dict[str, Any] = {
    "Properties": None,
    "0000": {"DriverDesc": "Intel(R) AI Boost", "DriverVersion": "32.0.100.3104"},
    "0001": {"DriverDesc": "no version"},
    "0002": {"DriverDesc": "Intel(R) AI Boost", "DriverVersion": "32.0.100.3104"},
}


class _Key:
    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __enter__(self) -> _Key:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _make_registry(opened: list[str]) -> SimpleNamespace:
    def open_key(parent: Any, name: str) -> _Key:
        opened.append(name)
        if isinstance(parent, str):
            return _Key(REGISTRY)
        values = parent.values[name]
        if values is None:
            raise PermissionError(name)
        return _Key(values)

    def query(key: _Key, name: str) -> tuple[Any, int]:
        if name not in key.values:
            raise FileNotFoundError(name)
        return key.values[name], 1

    return SimpleNamespace(
        HKEY_LOCAL_MACHINE="HKLM",
        OpenKey=open_key,
        QueryInfoKey=lambda key: (len(key.values), 0, 0),
        EnumKey=lambda key, number: list(key.values)[number],
        QueryValueEx=query,
    )


def test_windows_drivers_are_told_once_and_what_cannot_be_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setitem(sys.modules, "winreg", _make_registry(opened))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "win32")
    assert drivers.describe_npu_drivers() == "Intel(R) AI Boost 32.0.100.3104"
    assert opened[0].endswith(drivers.COMPUTE)
    assert drivers.describe_gpu_drivers() == "Intel(R) AI Boost 32.0.100.3104"
    assert any(name.endswith(drivers.DISPLAY) for name in opened)


def test_system_without_registry_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "winreg", None)  # type: ignore[arg-type]
    assert drivers.list_windows_drivers(drivers.DISPLAY) == []


def test_vulkan_tells_linux_gpu_drivers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [{"name": "b", "driver": "NVIDIA 580"}, {"name": "a", "driver": "Mesa 25"}]
    monkeypatch.setattr(drivers, "examine_vulkan", lambda: {"adapters": adapters})
    monkeypatch.setattr(sys, "platform", "linux")
    assert drivers.describe_gpu_drivers() == "a: Mesa 25, b: NVIDIA 580"


def test_processor_is_told_with_what_it_computes_with() -> None:
    assert drivers.describe_cpu()
