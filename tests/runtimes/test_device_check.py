"""The tiny graph, and running it on a device and nowhere else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lfm2_deploy.child import call_in_child
from runtimes import device_check, tiny_graph
from runtimes.device_check import check_device, run_tiny_graph, shorten_reason
from runtimes.ort_plugins import list_devices

CPU, WEBGPU = "CPUExecutionProvider", "WebGpuExecutionProvider"
# For a child: a provider's library is loaded once a process.
HALF_CHECK = """
from runtimes.device_check import run_tiny_graph
from runtimes.ort_plugins import list_devices


def run_half():
    return run_tiny_graph(list_devices("WebGpuExecutionProvider")[0], half=True)
"""
HAS_WEBGPU = importlib.util.find_spec("onnxruntime_ep_webgpu") is not None


@pytest.mark.parametrize(
    ("kind", "literal", "make_input"),
    [
        (TensorProto.FLOAT, tiny_graph.GRAPH, tiny_graph.make_input),
        (TensorProto.FLOAT16, tiny_graph.HALF_GRAPH, tiny_graph.make_half_input),
    ],
)
def test_tiny_graph_is_what_onnx_builds(kind: int, literal: bytes, make_input: Any) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = np.array([[1, -1], [2, -2], [3, -3], [4, -4]], dtype=dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="multiply"),
        helper.make_node("Relu", ["p"], ["y"], name="clip"),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", kind, [2, 4])],
        [helper.make_tensor_value_info("y", kind, [2, 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    onnx.checker.check_model(model)
    assert model.SerializeToString() == literal
    assert tuple(node.op_type for node in nodes) == tiny_graph.OPERATORS
    expected = np.maximum(make_input() @ weights, 0)
    assert expected.dtype == dtype
    assert tiny_graph.find_fault(expected) is None


@pytest.mark.parametrize(
    "result", [[[20, 0], [60.2, 0]], [[0, 0], [0, 0]], [[20, 0, 0], [60, 0, 0]], [[np.nan, 0]] * 2]
)
def test_wrong_result_is_a_fault(result: list[list[float]]) -> None:
    fault = tiny_graph.find_fault(np.array(result, dtype=np.float32))
    assert fault is not None
    assert fault.endswith("expected [[20.0, 0.0], [60.0, 0.0]]")


def test_cpu_runs_the_graph_with_every_node_placed_there() -> None:
    assert check_device(CPU) == {"runs": True, "reason": "ran a graph, all of it placed there"}


def test_device_that_is_not_there_is_told() -> None:
    assert check_device(CPU, 7) == {"runs": False, "reason": "cpu.7 is not listed any more"}
    found = check_device("NoSuchExecutionProvider")
    assert not found["runs"]
    assert "has no NoSuchExecutionProvider" in found["reason"]


def test_node_that_ran_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that takes part of the graph only, as the CPU takes the rest."""

    (cpu,) = list_devices(CPU)
    real = device_check._open(cpu, tiny_graph.GRAPH)
    session = SimpleNamespace(
        run=real.run,
        get_providers=lambda: ["FakeExecutionProvider", CPU],
        get_provider_graph_assignment_info=real.get_provider_graph_assignment_info,
    )
    monkeypatch.setattr(device_check, "_open", lambda device, graph: session)
    fake: Any = SimpleNamespace(provider="FakeExecutionProvider")
    with pytest.raises(RuntimeError, match="part of the graph ran on CPUExecutionProvider"):
        run_tiny_graph(fake)


def test_provider_left_out_of_the_session_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu,) = list_devices(CPU)
    real = device_check._open
    monkeypatch.setattr(device_check, "_open", lambda device, graph: real(cpu, graph))
    fake: Any = SimpleNamespace(provider="FakeExecutionProvider")
    with pytest.raises(RuntimeError, match="left it out of the session and used the CPU"):
        run_tiny_graph(fake)


def refuse_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU without shader-f16: the float16 graph makes no session."""
    real = device_check._open

    def open_float32(device: Any, graph: bytes) -> Any:
        if graph == tiny_graph.HALF_GRAPH:
            raise RuntimeError("[X] : 1 : FAIL : shader-f16 is not supported")
        return real(device, graph)

    monkeypatch.setattr(device_check, "_open", open_float32)


def test_gpu_without_float16_runs_and_says_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_half(monkeypatch)
    monkeypatch.setattr(device_check, "HALF", {CPU: "acme"})
    assert check_device(CPU) == {
        "runs": True,
        "reason": "ran a graph, all of it placed there; it computes float32 but not float16, which "
        "every precision but fp32 needs: export with --target acme --precision fp32 (shader-f16 "
        "is not supported)",
    }


def test_provider_whose_bundles_need_no_float16_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_half(monkeypatch)
    assert check_device(CPU) == {"runs": True, "reason": "ran a graph, all of it placed there"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "[ONNXRuntimeError] : 11 : EP_FAIL : /src/provider.cc:393 virtual std::unique_ptr<T> "
            "f(const X&) [ONNXRuntimeError] : 11 : EP_FAIL : /src/webgpu_context.cc:136 "
            "init()::<lambda()> status == Success was false. Failed to get a WebGPU adapter: "
            "No supported adapters\n\n\n",
            "Failed to get a WebGPU adapter: No supported adapters",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/x.cc:393 f() [ONNXRuntimeError] : 1 : FAIL : "
            "Could not determine default backend path for device\n\n",
            "Could not determine default backend path for device",
        ),
        ("something else", "something else"),
        ("", ""),
    ],
)
def test_reason_is_what_says_something(message: str, words: str) -> None:
    assert shorten_reason(message) == words


@pytest.mark.skipif(not HAS_WEBGPU, reason="onnxruntime-ep-webgpu is not installed")
def test_software_webgpu_runs_both_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vulkan = call_in_child("runtimes.vulkan", "examine_vulkan", seconds=60.0).value
    if not any(adapter["is_software"] for adapter in vulkan["adapters"]):
        pytest.skip("there is no software Vulkan adapter (package mesa-vulkan-drivers)")
    monkeypatch.setenv("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    found = call_in_child("runtimes.device_check", "list_providers", seconds=60.0).value
    (device,) = [d for d in found["devices"] if d["provider"] == WEBGPU]
    assert device["is_software"] is True
    answer = call_in_child("runtimes.device_check", "check_device", WEBGPU, 0, seconds=60.0)
    assert answer.value == {"runs": True, "reason": "ran a graph, all of it placed there"}
    (tmp_path / "half_check.py").write_text(HALF_CHECK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    # In float16 alone, so that its placement is seen, too.
    half = call_in_child("half_check", "run_half", seconds=60.0)
    assert half.value == "ran a graph, all of it placed there", half.failure
