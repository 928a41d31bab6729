"""Windows ML's catalogue, by a module of the form of windowsml 2.5.96."""

from __future__ import annotations

import sys
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes import windows_ml
from runtimes.windows_ml import Offer


class EpReadyState(IntEnum):
    Ready = 0
    NotReady = 1
    NotPresent = 2


class Provider:
    """A handle that is void once its catalogue is closed, as the real one."""

    def __init__(self, catalogue: Any, name: str, state: EpReadyState, path: str) -> None:
        self._catalogue, self._values = catalogue, {"name": name, "library_path": path}
        self._state = state

    def __getattr__(self, name: str) -> str:
        assert self._catalogue.open, "used after its catalogue was closed"
        return self._values[name]

    @property
    def ready_state(self) -> EpReadyState:
        assert self._catalogue.open
        return self._state

    def ensure_ready(self) -> None:
        if self._catalogue.fails:
            raise OSError("0x80072EE7")
        self._catalogue.downloaded.append(self._values["name"])


class EpCatalog:
    downloaded: list[str] = []  # noqa: RUF012
    fails = False

    def __enter__(self) -> EpCatalog:
        self.open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.open = False

    def find_all_providers(self) -> list[Provider]:
        return [
            Provider(self, "OpenVINOExecutionProvider", EpReadyState.Ready, "C:\\ov.dll"),
            Provider(self, "VitisAIExecutionProvider", EpReadyState.NotPresent, ""),
        ]


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> type[EpCatalog]:
    module = ModuleType("windowsml")
    module.__spec__ = ModuleSpec("windowsml", None)
    module.EpCatalog = EpCatalog  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "windowsml", module)
    monkeypatch.setattr(EpCatalog, "downloaded", [])
    return EpCatalog


def test_offers_are_read_and_nothing_is_downloaded(catalogue: type[EpCatalog]) -> None:
    assert windows_ml.list_offers() == (
        Offer("OpenVINOExecutionProvider", "Ready", "C:\\ov.dll"),
        Offer("VitisAIExecutionProvider", "NotPresent", ""),
    )
    assert catalogue.downloaded == []


def test_only_what_is_asked_for_and_not_ready_is_downloaded(catalogue: type[EpCatalog]) -> None:
    windows_ml.ensure_ready("OpenVINOExecutionProvider")
    windows_ml.ensure_ready("SomeOtherExecutionProvider")
    assert catalogue.downloaded == []
    windows_ml.ensure_ready("VitisAIExecutionProvider")
    assert catalogue.downloaded == ["VitisAIExecutionProvider"]


def test_failed_download_is_one_line(
    catalogue: type[EpCatalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "fails", True)
    with pytest.raises(RuntimeUnavailableError, match=r"cannot make VitisAI.* ready .0x80072EE7"):
        windows_ml.ensure_ready("VitisAIExecutionProvider")


def test_without_the_package_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "windowsml", None)
    assert windows_ml.list_offers() == ()
    windows_ml.ensure_ready("VitisAIExecutionProvider")
