"""Where what a rule says can be executed here, it is: ONNX Runtime's CPU provider, OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from exporters.lint.rules.cpu import CPU
from lfm2_deploy.findings import Outcome

from .planted import PLANTED

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}
# What ONNX Runtime 1.32 says of each.
REFUSALS = {
    "cpu/not-registered": "Could not find an implementation for BiasAdd",
    "cpu/version": r"Could not find an implementation for Add\(6\)",
    "cpu/types": "Could not find an implementation for Conv",
    "cpu/qmoe-form": "Please set swiglu_fusion=1",
    "cpu/attention-norms": "q_norm_weight / k_norm_weight inputs are not supported",
    "cpu/causal-conv": "activation",
    "cpu/matmul-form": "Only power-of-two block sizes >= 16",
}


def run_on_cpu(path: Path) -> None:
    """Load a graph and run it once on ones; symbolic dimensions are 1."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        one.name: np.ones([d if isinstance(d, int) else 1 for d in one.shape], _TYPES[one.type])
        for one in session.get_inputs()
    }
    session.run(None, feeds)


def test_every_refusal_of_the_cpu_is_tried() -> None:
    refused = {rule.id for rule in CPU.rules if rule.outcome is Outcome.REFUSED}
    assert set(REFUSALS) == refused


@pytest.mark.parametrize(("rule", "words"), REFUSALS.items(), ids=REFUSALS)
def test_what_the_cpu_refuses_is_refused(rule: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=words):
        run_on_cpu(PLANTED[rule](True).save(tmp_path))


@pytest.mark.parametrize("rule", REFUSALS)
def test_its_twin_runs_on_the_cpu(rule: str, tmp_path: Path) -> None:
    run_on_cpu(PLANTED[rule](False).save(tmp_path))


@pytest.mark.parametrize("rule", ["npu/not-imported", "openvino-cpu/not-imported"])
def test_what_is_not_imported_cannot_be_read(rule: str, tmp_path: Path) -> None:
    core = openvino.Core()
    with pytest.raises(RuntimeError, match="No conversion rule found"):
        core.read_model(PLANTED[rule](True).save(tmp_path))
    core.read_model(PLANTED[rule](False).save(tmp_path))
