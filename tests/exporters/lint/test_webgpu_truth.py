"""What lint says of WebGPU is what the plugin does, on whatever adapter there is.

Skipped without the plugin onnxruntime-ep-webgpu, or without an adapter. A software one will do:
ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 and Mesa's lavapipe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from exporters.lint.rule import Rule
from exporters.lint.rules.webgpu import WEBGPU
from lfm2_deploy.findings import Outcome

from .planted import PLANTED

pytestmark = pytest.mark.skipif(
    find_spec("onnxruntime_ep_webgpu") is None, reason="needs onnxruntime-ep-webgpu"
)
Answers = dict[tuple[str, bool], dict[str, str]]
# In a process of its own: a provider that is registered stays so, and its threads with it.
ASK = """
import json, sys
import numpy as np
import onnxruntime as ort
import onnxruntime_ep_webgpu as plugin

TYPES = {"float": "float32", "double": "float64"}
ort.set_default_logger_severity(4)
ort.register_execution_provider_library("WebGPU", plugin.get_library_path())
devices = [one for one in ort.get_ep_devices() if one.ep_name == plugin.get_ep_name()]
if not devices:
    raise SystemExit("no adapter")
for path in sys.argv[1:]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices[:1], {})
    try:
        session = ort.InferenceSession(path, options)
        feeds = {}
        for one in session.get_inputs():
            name = one.type[7:-1]
            shape = [dim if isinstance(dim, int) else 1 for dim in one.shape]
            feeds[one.name] = np.ones(shape, TYPES.get(name, name))
        session.run(None, feeds)
        placed = {
            node.op_type: part.ep_name
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        }
        print(json.dumps(placed))
    except Exception as error:
        print(json.dumps({"error": str(error)[:200]}))
"""
# The plugin has channels last; the rule is about the older wheel.
TRIED = [rule for rule in WEBGPU.rules if rule.id != "webgpu/channels-last"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What became of each planted fault, and of its twin."""
    asked, paths = [], []
    for rule in TRIED:
        for planted in (True, False):
            path = PLANTED[rule.id](planted).save(tmp_path_factory.mktemp("plant"))
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
            asked.append((rule.id, planted))
            paths.append(path)
    lines = ask(paths)
    return dict(zip(asked, map(json.loads, lines), strict=True))


def ask(paths: list[Path]) -> list[str]:
    """One line of JSON for each graph."""
    command = [sys.executable, "-c", ASK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.stderr.strip().endswith("no adapter"):
        pytest.skip("no WebGPU adapter: set VK_ICD_FILENAMES and the variable above")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("rule", TRIED, ids=lambda rule: rule.id)
def test_planted_fault_is_one_there(rule: Rule, answers: Answers) -> None:
    answer = answers[rule.id, True]
    if rule.outcome is Outcome.REFUSED:
        assert "error" in answer
    else:
        assert "CPUExecutionProvider" in answer.values()


@pytest.mark.parametrize("rule", TRIED, ids=lambda rule: rule.id)
def test_twin_runs_there(rule: Rule, answers: Answers) -> None:
    assert set(answers[rule.id, False].values()) == {"WebGpuExecutionProvider"}
