"""Names -> parts; what is unknown or not installed is said with a way on."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import entry as entry_module
from lfm2_deploy import registry
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.registry import (
    EXPORT_OPTIONS,
    EXPORTER,
    ORT_CHECK,
    ORT_DEVICES,
    ORT_NAMES,
    PROBE_CALL,
    PROBES,
    RUNTIMES,
    TARGETS,
    VULKAN,
    Entry,
    find_runtime,
    find_target,
)

ROOT = Path(__file__).parents[1]
EXPORT_COMMAND = "pip install 'lfm2-deploy[export]' (in a clone: '.[export]')"
ENTRIES = [
    *(*RUNTIMES.values(), *TARGETS.values(), *PROBES.values(), EXPORTER, EXPORT_OPTIONS),
    *(ORT_CHECK, ORT_DEVICES, ORT_NAMES, PROBE_CALL, VULKAN),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.module}.{entry.attribute}")
def test_entry_loads_what_it_names(entry: Entry) -> None:
    if entry.missing() == ("onnxruntime_qnn",):  # it has no wheels for macOS, nor old glibc
        pytest.skip("NOT RUN: onnxruntime-qnn is not installed")
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
    expected += ", or auto" if kind == "target" else ""
    # Of one that only differs in case, those like it are told as well.
    told, _, near = str(caught.value).partition("; did you mean ")
    assert told == expected
    assert bool(near) == (name == "CPU" and kind == "target")


@pytest.mark.parametrize(
    ("package", "use", "remedy"),
    [
        ("onnxruntime", lambda: find_runtime("ort"), "pip install lfm2-deploy"),
        ("torch", lambda: find_runtime("reference"), EXPORT_COMMAND),
        ("onnx_ir", lambda: find_target("cpu"), EXPORT_COMMAND),
        ("torch", EXPORTER.load, EXPORT_COMMAND),
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


@pytest.mark.parametrize(
    ("declared", "found", "words"),
    [
        ('torch==2.13.0; extra == "export"', "2.5.1", "torch==2.13.0, found 2.5.1"),
        ("torch==2.13.0", "2.13.0+cu126", None),
        ("torch>=2.12", "2.13.0rc1", None),
        ("torch==2.13.0", "my own build", None),
        ('torch<2; extra == "dev"', "2.13.0", None),
        ('torch<2; python_version < "3"', "2.13.0", None),
        ("onnx-ir>=2", "1.0", "onnx-ir>=2, found 1.0"),
        ("something-else>=2", "1.0", None),
    ],
)
def test_version_that_is_not_taken_is_named(
    declared: str, found: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: [declared])
    monkeypatch.setattr("importlib.metadata.version", lambda _: found)
    entry = replace(EXPORTER, needs=("torch", "onnx_ir"))
    if words is None:
        assert entry.mismatched() == ()
        return
    assert entry.mismatched() == (words,)
    with pytest.raises(RuntimeUnavailableError) as caught:
        entry.load()
    assert str(caught.value) == f"exporting needs {words}: {EXPORT_COMMAND}"


def test_versions_of_every_extra_that_users_install_are_compared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"", *project["optional-dependencies"]} - {"dev", "docs"}
    assert set(entry_module._EXTRAS) == extras


def test_wrong_version_of_the_webgpu_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ['onnxruntime-ep-webgpu<0.5; extra == "webgpu"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: declared)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.9.0")
    entry = replace(RUNTIMES["webgpu"], needs=("onnxruntime_ep_webgpu",))
    assert entry.mismatched() == ("onnxruntime-ep-webgpu<0.5, found 0.9.0",)


@pytest.mark.parametrize("asked", ["importlib.metadata.requires", "importlib.metadata.version"])
def test_version_that_is_not_known_is_no_obstacle(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(asked, fail)
    assert EXPORTER.mismatched() == ()


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_package_that_does_not_load_is_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_wheel.py").write_text(f"raise {kind}('no such library:\\n  x.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeUnavailableError) as caught:
        replace(RUNTIMES["ort"], module="broken_wheel").load()
    assert str(caught.value) == (
        "ONNX Runtime on the CPU needs onnxruntime, which is installed but does not load "
        "(no such library: x.so): pip install lfm2-deploy --force-reinstall"
    )


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


def test_own_name_is_found_without_looking_at_other_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**group: str) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr("importlib.metadata.entry_points", fail)
    assert find_target("cpu").name == "cpu"
    assert callable(find_runtime("ort"))


@pytest.mark.parametrize(
    ("name", "hint"), [("vulkan", "try webgpu"), ("dml", "try directml"), ("cuda", "try webgpu")]
)
def test_target_by_another_name_is_hinted_at(name: str, hint: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"or auto; for {name} {hint}"):
        find_target(name)
