"""`lfm2-deploy doctor`, and what it asks the system."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version

import pytest

from lfm2_deploy.child import Answer
from lfm2_deploy.commands import doctor_devices
from lfm2_deploy.commands.ort_wheels import PURPOSES, find_conflicts
from lfm2_deploy.entry import Entry
from lfm2_deploy.machine import CpuInfo, describe_machine, parse_cpuinfo, parse_meminfo

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


def test_json_tells_packages_machine_and_runtimes(run: Callable, still: None) -> None:
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
    for title in ("Computer", "Packages", "Runtimes", "Targets", "Devices", "Auto", "Hub"):
        assert f"\n{title}" in f"\n{result.stdout}"
    assert "not asked; --online does" in result.stdout
    assert "\nAuto  --target auto would choose " in result.stdout


def test_missing_package_comes_with_its_remedy(
    still: None, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Entry, "missing", lambda entry: entry.needs)
    result = run("doctor")
    assert "missing  export for ONNX Runtime CPU: needs torch, onnx" in result.stdout
    assert "pip install 'lfm2-deploy[export]'" in result.stdout


def test_package_of_another_version_is_not_called_ready(
    still: None, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["onnxruntime>=99"])
    words = f"needs onnxruntime>=99, found {version('onnxruntime')}"
    assert f"unfit  ONNX Runtime on the CPU: {words}; pip install" in run("doctor").stdout
    record = json.loads(run("doctor", "--json").stdout)["runtimes"]["ort"]
    assert record["available"] is False
    assert record["missing"] == []
    assert record["remedy"] == "pip install lfm2-deploy"


def test_hub_that_does_not_answer_is_told_with_the_reason(
    still: None, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    record = json.loads(run("doctor", "--online", "--json").stdout)
    assert record["hub"]["reachable"] is False
    assert "refused" in record["hub"]["reason"].lower()


def test_several_wheels_of_one_module_are_a_conflict() -> None:
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]}
    assert find_conflicts(both) == both
    genai = {"onnxruntime_genai": ["onnxruntime-genai", "onnxruntime-genai-cuda"]}
    assert find_conflicts({**genai, "onnxruntime": ["onnxruntime"]}) == genai
    assert find_conflicts({"onnxruntime": ["onnxruntime", "onnxruntime"]}) == {}
    assert find_conflicts({}) == {}


OURS = ("onnxruntime", "onnxruntime-genai")


@pytest.mark.parametrize("name", [name for name in PURPOSES if name not in OURS])
def test_conflict_is_shown_with_the_way_out(
    name: str, run: Callable, monkeypatch: pytest.MonkeyPatch, still: None
) -> None:
    own = OURS["genai" in name]
    both = {own.replace("-", "_"): [own, name], f"{name}_other": ["other"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: both)
    shown = run("doctor").stdout
    assert f"pip uninstall -y {own} {name}, all of them, then pip install one:" in shown
    line = next(line for line in shown.splitlines() if line.startswith(f"    {name} "))
    assert line.endswith(PURPOSES[name])


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this machine's devices alone."""
    answer = Answer({"version": "1.32.0", "devices": [], "failures": {}, "offered": []}, None)
    monkeypatch.setattr(doctor_devices, "call_in_child", lambda *call, seconds: answer)
    monkeypatch.setattr(doctor_devices, "examine_vulkan", lambda: None)
    monkeypatch.setattr(doctor_devices, "examine_auto", list)


def fake_devices(
    monkeypatch: pytest.MonkeyPatch, checks: dict[str, Answer], **listed: object
) -> None:
    """A machine whose GPUs answer as given, by provider."""
    devices = [
        {
            "provider": provider,
            "index": 0,
            "name": f"{provider.removesuffix('ExecutionProvider').lower()}.0",
            "kind": "gpu",
            "is_software": False,
            "description": "Some GPU",
        }
        for provider in checks
    ]
    found = {"version": "1.32.0", "devices": devices, "failures": {}, "offered": [], **listed}

    def call(module: str, attribute: str, *arguments: str, seconds: float) -> Answer:
        if attribute == "list_providers":
            return Answer(found, None)
        return checks[arguments[0]]

    monkeypatch.setattr(doctor_devices, "call_in_child", call)
    monkeypatch.setattr(doctor_devices, "examine_vulkan", lambda: None)
    monkeypatch.setattr(doctor_devices, "examine_auto", list)


def test_device_that_falls_back_is_told_with_the_provider_s_own_warning(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = (
        "\x1b[0;93m2026-11-26 02:26:00.69 [W:onnxruntime:Default, x.cc:103 Create] Failed to "
        "create CUDAExecutionProvider. Require cuDNN 9.\x1b[m"
    )
    reason = "onnxruntime left it out of the session and used the CPU"
    answer = Answer({"runs": False, "reason": reason}, None, ("noise", warning))
    fake_devices(monkeypatch, {"CUDAExecutionProvider": answer})
    shown = run("doctor").stdout
    assert (
        f"cuda.0  fails  Some GPU: listed, but does not load: {reason} (Failed to create "
        "CUDAExecutionProvider. Require cuDNN 9.)\n"
    ) in shown


def test_webgpu_on_a_software_adapter_is_not_called_ready(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Answer({"runs": True, "reason": "ran a graph; falling back was forbidden"}, None)
    fake_devices(monkeypatch, {"WebGpuExecutionProvider": good})
    adapter = {"name": "llvmpipe", "kind": "cpu", "driver": "Mesa 25", "is_software": True}
    vulkan = {"adapters": [adapter], "problems": []}
    monkeypatch.setattr(doctor_devices, "examine_vulkan", lambda: vulkan)
    shown = run("doctor").stdout
    assert "webgpu.0  software  llvmpipe: computes on the CPU, so it serves for tests only" in shown


@pytest.mark.parametrize(
    "failure", ["the process crashed (SIGSEGV): it said nothing", "it did not answer within 30 s"]
)
def test_driver_that_crashes_or_hangs_costs_only_its_own_line(
    failure: str, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Answer({"runs": True, "reason": "ran a graph, all of it placed there"}, None)
    checks = {"WebGpuExecutionProvider": Answer(None, failure), "CPUExecutionProvider": good}
    fake_devices(monkeypatch, checks)
    result = run("doctor")
    assert result.exit_code == 0
    assert f"webgpu.0  fails  Some GPU: listed, but does not load: {failure}" in result.stdout
    assert "cpu.0     ready  Some GPU; ran a graph, all of it placed there" in result.stdout


def test_library_that_crashes_is_told_and_the_others_are_listed(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = "BadExecutionProvider", "GoodExecutionProvider"
    crash = Answer(None, "the process crashed (SIGSEGV): it said nothing")

    def device(provider: str) -> dict[str, object]:
        name = f"{provider.removesuffix('ExecutionProvider').lower()}.0"
        known = {"provider": provider, "index": 0, "name": name, "kind": "npu"}
        return {**known, "is_software": False, "description": provider}

    def call(module: str, attribute: str, *arguments: str, seconds: float) -> Answer:
        if attribute == "list_provider_names":
            return Answer({"version": "1.32.0", "libraries": [bad, good]}, None)
        if attribute == "check_device":
            return Answer({"runs": True, "reason": "ran"}, None)
        if arguments in ((), (bad,)):
            return crash
        names = ["CPUExecutionProvider", *filter(None, arguments)]
        devices = [device(name) for name in names]
        found = {"version": "1.32.0", "devices": devices, "failures": {}, "offered": []}
        return Answer(found, None)

    monkeypatch.setattr(doctor_devices, "call_in_child", call)
    monkeypatch.setattr(doctor_devices, "examine_vulkan", lambda: None)
    monkeypatch.setattr(doctor_devices, "examine_auto", list)
    shown = run("doctor").stdout
    assert f"{bad}  broken  its library fails: the process crashed (SIGSEGV)" in shown
    assert shown.count("cpu.0 ") == 1
    assert "good.0" in shown


def test_directx_remedy_is_told_on_windows(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer({"runs": False, "reason": "no adapter"}, None)
    monkeypatch.setattr(
        doctor_devices, "sys", type("Windows", (), {"platform": "win32"}), raising=True
    )
    fake_devices(monkeypatch, {"DmlExecutionProvider": answer})
    assert "it needs DirectX 12" in run("doctor").stdout


def test_failing_library_and_offers_are_told(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {"QNNExecutionProvider": "QNNExecutionProvider does not load: no such file"}
    offered = ["VitisAIExecutionProvider"]
    fake_devices(monkeypatch, {}, failures=failures, offered=offered)
    shown = run("doctor").stdout
    assert "broken   QNNExecutionProvider does not load: no such file" in shown
    assert "offered  Windows ML offers it" in shown


def test_onnxruntime_that_does_not_load_is_told(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(None, "No module named 'onnxruntime.capi'")
    monkeypatch.setattr(doctor_devices, "call_in_child", lambda *call, seconds: answer)
    monkeypatch.setattr(doctor_devices, "examine_auto", list)
    result = run("doctor")
    assert result.exit_code == 0
    assert "broken  No module named 'onnxruntime.capi'" in result.stdout


def test_this_machine_runs_a_graph_and_auto_chooses(run: Callable) -> None:
    record = json.loads(run("doctor", "--json").stdout)
    assert record["auto"][-1]["target"] == "cpu"
    assert all(found["reason"] for found in record["auto"])
    devices = record["onnxruntime"]["devices"]
    (cpu,) = [d for d in devices if d["provider"] == "CPUExecutionProvider"]
    assert cpu["runs"] is True
    assert cpu["reason"] == "ran a graph, all of it placed there"


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has DirectML")
def test_runtime_without_a_device_is_not_called_ready(run: Callable) -> None:
    # Its packages alone made DirectML "ready" on Linux.
    lines = [line for line in run("doctor").stdout.splitlines() if "by DirectML" in line]
    assert lines
    assert all("no device" in line and " ready " not in line for line in lines)
