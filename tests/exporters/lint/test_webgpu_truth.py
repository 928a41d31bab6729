"""What lint says of WebGPU is what the plugin does, on whatever adapter there is.

Skipped without the plugin onnxruntime-ep-webgpu, or without an adapter. A software one will do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import onnx
import pytest

from exporters.lint.rule import Rule
from exporters.lint.rules.webgpu import WEBGPU
from lfm2_deploy.findings import Outcome

from ...runtimes.webgpu_here import choose_adapter  # noqa: TID252
from .planted import PLANTED

pytestmark = pytest.mark.skipif(
    find_spec("onnxruntime_ep_webgpu") is None, reason="needs onnxruntime-ep-webgpu"
)
Answers = dict[tuple[str, bool], dict[str, Any]]
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
paths, compared = map(json.loads, sys.argv[1:])
for path in paths:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices[:1], {})
    try:
        session = ort.InferenceSession(path, options)
        feeds, random = {}, np.random.default_rng(0)
        for one in session.get_inputs():
            name = one.type[7:-1]
            shape = [dim if isinstance(dim, int) else 1 for dim in one.shape]
            feeds[one.name] = np.ones(shape, TYPES.get(name, name))
            if feeds[one.name].dtype.kind == "f":
                feeds[one.name][:] = random.normal(size=shape)
            # Attention's lengths less one are ones.
            feeds[one.name] += one.name == "total"
        found = session.run(None, feeds)[0]
        placed = {
            node.op_type: part.ep_name
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        }
        off = None
        if path in compared:
            cpu = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            off = float(np.abs(found - cpu.run(None, feeds)[0]).max())
        print(json.dumps({"placed": placed, "off": off}))
    except Exception as error:
        print(json.dumps({"error": str(error)[:200]}))
"""
# Sums of a few float32 products, in another order; what is ignored makes 100 times as much.
_TOLERANCE = 1e-4
# The plugin has channels last: the rule is about the older wheel. What QMoE loses of several
# tokens changes from run to run.
_NOT_TRIED = ("webgpu/channels-last", "webgpu/qmoe-several-tokens")
TRIED = [rule for rule in WEBGPU.rules if rule.id not in _NOT_TRIED]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What became of each planted fault, and of its twin."""
    asked, paths, compared = [], [], []
    for rule in TRIED:
        for planted in (True, False):
            path = PLANTED[rule.id](planted).save(tmp_path_factory.mktemp("plant"))
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
            asked.append((rule.id, planted))
            paths.append(str(path))
            if rule.outcome is Outcome.WRONG:
                compared.append(str(path))
    lines = ask(paths, compared)
    return dict(zip(asked, map(json.loads, lines), strict=True))


def ask(paths: list[str], compared: list[str]) -> list[str]:
    """One line of JSON for each graph; some of them compared with the CPU."""
    command = [sys.executable, "-c", ASK, json.dumps(paths), json.dumps(compared)]
    environment = {**os.environ, **choose_adapter()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.stderr.strip().endswith("no adapter"):
        pytest.skip("NOT RUN: no WebGPU adapter; sudo scripts/set_up_software_vulkan.sh")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("rule", TRIED, ids=lambda rule: rule.id)
def test_planted_fault_is_one_there(rule: Rule, answers: Answers) -> None:
    answer = answers[rule.id, True]
    if rule.outcome is Outcome.REFUSED:
        assert "error" in answer
    elif rule.outcome is Outcome.WRONG:
        assert answer["off"] > 100 * _TOLERANCE
    else:
        assert "CPUExecutionProvider" in answer["placed"].values()


@pytest.mark.parametrize("rule", TRIED, ids=lambda rule: rule.id)
def test_twin_runs_there(rule: Rule, answers: Answers) -> None:
    answer = answers[rule.id, False]
    assert set(answer["placed"].values()) == {"WebGpuExecutionProvider"}
    if rule.outcome is Outcome.WRONG:
        assert answer["off"] < _TOLERANCE
