"""Names -> parts; what is unknown or not installed is said with a way on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lfm2_deploy import registry
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import (
    EXPORT_OPTIONS,
    EXPORTER,
    RUNTIMES,
    TARGETS,
    Entry,
    find_runtime,
    find_target,
)

ENTRIES = [*RUNTIMES.values(), *TARGETS.values(), EXPORTER, EXPORT_OPTIONS]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.module}.{entry.attribute}")
def test_entry_loads_what_it_names(entry: Entry) -> None:
    assert entry.missing() == ()
    assert entry.load() is getattr(sys.modules[entry.module], entry.attribute)


def test_cpu_target_runs_on_a_registered_runtime() -> None:
    assert find_target("cpu").runtime in RUNTIMES


@pytest.mark.parametrize(
    ("find", "kind", "choices"),
    [(find_runtime, "runtime", RUNTIMES), (find_target, "target", TARGETS)],
)
@pytest.mark.parametrize("name", ["abacus", "", "CPU"])
def test_unknown_name_lists_the_choices(
    find: Callable[[str], Any], kind: str, choices: dict[str, Entry], name: str
) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        find(name)
    expected = f"there is no {kind} {name!r}: expected one of {', '.join(choices)}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("package", "use", "remedy"),
    [
        ("onnxruntime", lambda: find_runtime("ort"), "pip install lfm2-deploy"),
        ("torch", lambda: find_runtime("reference"), "pip install 'lfm2-deploy[export]'"),
        ("onnx_ir", lambda: find_target("cpu"), "pip install 'lfm2-deploy[export]'"),
        ("torch", EXPORTER.load, "pip install 'lfm2-deploy[export]'"),
    ],
)
def test_missing_package_names_it_and_the_remedy(
    package: str, use: Callable[[], Any], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeUnavailableError) as caught:
        use()
    assert f"needs {package}, which is not installed" in str(caught.value)
    assert str(caught.value).endswith(remedy)


def test_every_missing_package_is_named_and_nothing_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = Entry(
        module="no_such_module_at_all",
        attribute="load",
        needs=("no_such_package", "json", "nor_this_one"),
        install="pip install both",
        summary="an adapter",
    )
    monkeypatch.setattr(registry, "RUNTIMES", {"npu": entry})
    assert entry.missing() == ("no_such_package", "nor_this_one")
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime("npu")
    assert "needs no_such_package, nor_this_one," in str(caught.value)


def test_broken_entry_is_not_taken_for_a_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError):
        replace(RUNTIMES["ort"], module="runtimes.no_such_module").load()
