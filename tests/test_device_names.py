"""The names of devices that completion offers are those that runtimes take."""

from __future__ import annotations

import inspect

import pytest

from lfm2_deploy.registry import DEVICES, RUNTIMES


def test_every_runtime_for_bundles_has_names() -> None:
    assert set(DEVICES) == set(RUNTIMES) - {"reference"}


def test_openvino_knows_them() -> None:
    pytest.importorskip("openvino")
    from runtimes.ov_device import REMEDIES

    assert {name.upper() for name in DEVICES["openvino"]} == set(REMEDIES)


def test_webgpu_knows_them() -> None:
    from runtimes.webgpu_device import _ANY, PREFERENCES

    assert set(DEVICES["webgpu"]) - {"cpu"} <= {*_ANY, *PREFERENCES}
    assert set(PREFERENCES) < set(DEVICES["webgpu"])


def test_qnn_knows_them() -> None:
    pytest.importorskip("onnxruntime_qnn")
    from runtimes.qnn_device import CPU, EMULATOR, NPU

    assert set(DEVICES["qnn"]) == {CPU, EMULATOR, NPU}


def test_genai_knows_them() -> None:
    pytest.importorskip("onnxruntime_genai")
    from lfm2_deploy.places import split_place
    from runtimes.genai_device import find_device

    for name in DEVICES["genai"]:
        runtime, device = split_place(name)
        assert runtime == "genai"
        assert find_device(device).name == (device or "cpu")


def test_experts_beside_an_npu_run_where_openvino_does() -> None:
    from exporters.targets.npu import NPU

    assert NPU.experts == DEVICES["openvino"]


@pytest.mark.parametrize("runtime", ["ort", "directml"])
def test_loader_tells_the_same_names(runtime: str) -> None:
    told = inspect.getdoc(RUNTIMES[runtime].load())
    assert told is not None
    named = set(DEVICES[runtime]) - ({"cpu"} if runtime == "directml" else set())
    assert all(f'"{name}"' in told for name in named)
