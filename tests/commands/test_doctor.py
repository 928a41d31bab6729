"""`lfm2-deploy doctor`, and what it asks the system."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version

import pytest

from lfm2_deploy.commands.doctor import find_conflicts
from lfm2_deploy.machine import CpuInfo, describe_machine, parse_cpuinfo, parse_meminfo
from lfm2_deploy.registry import Entry

HYPER_THREADED = """\
processor	: 0
model name	: Some CPU @ 3.00GHz
physical id	: 0
core id		: 0
flags		: fpu avx2 avx_vnni

processor	: 1
model name	: Some CPU @ 3.00GHz
physical id	: 0
core id		: 0
flags		: fpu avx2 avx_vnni
"""
ARM = """\
processor	: 0
BogoMIPS	: 50.00
Features	: fp asimd asimddp i8mm

processor	: 1
Features	: fp asimd asimddp i8mm
"""


def test_json_tells_packages_machine_and_runtimes(run: Callable) -> None:
    record = json.loads(run("doctor", "--json").stdout)
    assert record["packages"]["onnxruntime"] == version("onnxruntime")
    assert record["machine"]["logical_cores"] == os.cpu_count()
    assert record["runtimes"]["ort"]["available"] is True
    assert record["targets"]["cpu"]["missing"] == []
    assert record["hub"] is None


def test_text_shows_every_section(run: Callable) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stderr == ""
    for title in ("Computer", "Packages", "Runtimes", "Targets", "Devices", "Hub"):
        assert f"\n{title}" in f"\n{result.stdout}"
    assert "not asked; --online does" in result.stdout


def test_missing_package_comes_with_its_remedy(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Entry, "missing", lambda entry: entry.needs)
    result = run("doctor")
    assert "missing  export for ONNX Runtime CPU: needs torch, onnx" in result.stdout
    assert "pip install 'lfm2-deploy[export]'" in result.stdout


def test_package_of_another_version_is_not_called_ready(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["onnxruntime>=99"])
    words = f"needs onnxruntime>=99, found {version('onnxruntime')}"
    assert f"unfit  ONNX Runtime on the CPU: {words}; pip install" in run("doctor").stdout
    record = json.loads(run("doctor", "--json").stdout)["runtimes"]["ort"]
    assert record["available"] is False
    assert record["missing"] == []
    assert record["remedy"] == "pip install lfm2-deploy"


def test_hub_that_does_not_answer_is_told_with_the_reason(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    record = json.loads(run("doctor", "--online", "--json").stdout)
    assert record["hub"]["reachable"] is False
    assert "refused" in record["hub"]["reason"].lower()


def test_several_wheels_of_one_module_are_a_conflict() -> None:
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]}
    assert find_conflicts(both) == ["onnxruntime", "onnxruntime-gpu"]
    assert find_conflicts({"onnxruntime": ["onnxruntime", "onnxruntime"]}) == []
    assert find_conflicts({}) == []


def test_conflict_is_shown_with_the_way_out(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: both)
    assert "pip uninstall onnxruntime onnxruntime-gpu" in run("doctor").stdout


def test_hyper_threads_are_not_counted_as_cores() -> None:
    flags = frozenset({"fpu", "avx2", "avx_vnni"})
    assert parse_cpuinfo(HYPER_THREADED) == CpuInfo("Some CPU @ 3.00GHz", 1, flags)


def test_what_cpuinfo_leaves_out_is_unknown() -> None:
    flags = frozenset({"fp", "asimd", "asimddp", "i8mm"})
    assert parse_cpuinfo(ARM) == CpuInfo(None, None, flags)
    assert parse_cpuinfo("") == CpuInfo(None, None, None)


def test_meminfo_is_read_in_bytes() -> None:
    text = "MemTotal:       16384 kB\nMemAvailable:    8192 kB\nHugePages_Total:       2\nOdd\n"
    assert parse_meminfo(text) == {
        "MemTotal": 16384 * 1024,
        "MemAvailable": 8192 * 1024,
        "HugePages_Total": 2,
    }


def test_this_machine_has_cores() -> None:
    machine = describe_machine()
    assert machine.usable_cores
    assert machine.usable_cores >= 1
    assert set(machine.instructions).isdisjoint(machine.not_found)
