"""A graph is on the device that was asked for, all of it, or there is an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from runtimes import directml
from runtimes.gpu_inputs import list_inputs
from runtimes.gpu_memory import EXPAND_GRAPHS
from runtimes.gpu_provider import check_placement, list_assignments, load_graph, make_gpu_options
from runtimes.ort_plugins import ProviderDevice

GPU = "WebGpuExecutionProvider"
PATH = Path("bundle/model.onnx")


def session(providers: list[str], **placed: list[str]) -> Any:
    """A session that tells where its nodes lie."""
    parts = [
        SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [node(op) for op in ops])
        for name, ops in placed.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: parts
    )


def node(op_type: str) -> Any:
    return SimpleNamespace(op_type=op_type)


def test_session_with_all_nodes_on_the_device_is_taken() -> None:
    check_placement(session([GPU], **{GPU: ["MatMul", "Add"]}), GPU, PATH)


def test_node_elsewhere_is_named_with_its_place() -> None:
    placed = {GPU: ["MatMul"], "CPUExecutionProvider": ["Unique", "Det"]}
    with pytest.raises(BundleError) as caught:
        check_placement(session([GPU, "CPUExecutionProvider"], **placed), GPU, PATH)
    assert str(caught.value) == (
        f"{GPU} leaves nodes of {PATH} to others: Det (CPUExecutionProvider), Unique "
        "(CPUExecutionProvider); export the model again"
    )


def test_provider_that_was_left_out_is_an_error() -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"left {GPU} out of the session"):
        check_placement(session(["CPUExecutionProvider"]), GPU, PATH)


def test_onnxruntime_that_does_not_tell_is_not_asked() -> None:
    assert list_assignments(SimpleNamespace()) == []  # type: ignore[arg-type]


def test_falling_back_is_forbidden_and_placement_recorded() -> None:
    options = make_gpu_options({"capacity": 8})
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    # DirectML takes no others.
    assert not options.enable_mem_pattern
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL


def test_own_record_of_a_real_session_names_its_nodes(tmp_path: Path) -> None:
    options = make_gpu_options({})
    # Without it, the CPU itself is refused.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
    loaded = ort.InferenceSession(
        EXPAND_GRAPHS["float32"], options, providers=["CPUExecutionProvider"]
    )
    (part,) = list_assignments(loaded)
    assert [n.op_type for n in part.get_nodes()] == ["Expand"]
    check_placement(loaded, "CPUExecutionProvider", PATH)


def test_device_that_takes_no_graph_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a graph")
    cpu = ProviderDevice("CPUExecutionProvider", 0, "cpu", "", 0, 0, "A chip", False)
    with pytest.raises(BundleError) as caught:
        load_graph(broken, cpu, make_gpu_options({}), {})
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"cpu.0 (cpu, A chip) does not take {broken} (onnxruntime ")
    assert f"`lfm2-deploy lint {tmp_path}`" in text


def test_adapter_is_the_one_that_windows_names() -> None:
    def device(index: int, handle: Any) -> ProviderDevice:
        return ProviderDevice("DmlExecutionProvider", index, "gpu", "", 0, 0, "", False, handle)

    handle = SimpleNamespace(device=SimpleNamespace(metadata={"DxgiAdapterNumber": "3"}))
    unnamed = SimpleNamespace(device=SimpleNamespace(metadata={}))
    assert directml.find_adapter(device(1, handle)) == 3
    assert directml.find_adapter(device(1, unnamed)) == 1
    assert directml.find_adapter(device(2, None)) == 2


def test_inputs_of_a_padded_call_are_those_of_the_contract() -> None:
    given = list_inputs([5, 6, 7], 10, [2], steps=8, logit_count=1, conv_width=2)
    expected = {
        "input_ids": [[5, 6, 7, 0, 0, 0, 0, 0]],
        "position_ids": [[10, 11, 12, 12, 12, 12, 12, 12]],
        "seqlens_k": [12],
        "total_sequence_length": [18],
        "logit_rows": [2],
        # Of [past, new]: the last two real ones.
        "conv_ends": [3, 4],
    }
    assert {name: array.tolist() for name, array in given.items()} == expected
    assert {str(given[name].dtype) for name in ("seqlens_k", "total_sequence_length")} == {"int32"}
    every = list_inputs([5, 6], 0, range(2), steps=4, logit_count=4, conv_width=2)
    assert every["logit_rows"].tolist() == [0, 1, 1, 1]
    assert every["logit_rows"].dtype == np.int64
