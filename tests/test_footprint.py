"""What a model takes, by hand and against bundles and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporters.quantize.plan import PRECISIONS, Precision, plan_tensors
from lfm2_deploy import api
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.footprint import Footprint, Storage, expand_plan, measure_footprint
from lfm2_deploy.weights import list_weights

# Loads a bundle, answers, and tells how much memory the process holds.
RUN = """
import sys
from lfm2_deploy import api
from lfm2_deploy.machine import measure_memory
model = api.load(sys.argv[1])
model.generate([3] * 512, max_new_tokens=32, ignore_eos=True)
print(measure_memory()[1])
"""


def plan(config: Lfm2Config, precision: Precision, context: int = 100) -> Footprint:
    entries = plan_tensors(list_weights(config), precision)
    storages = {name: Storage(entry.bits, entry.group) for name, entry in entries.items()}
    return measure_footprint(config, storages, context)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", ["synthetic:tiny-moe", "synthetic:tiny-dense", str(DEMO_MODEL)])
def test_weights_on_disk_are_those_of_the_bundle(
    model: str, precision: Precision, tmp_path: Path
) -> None:
    bundle = api.export(model, tmp_path / "x", precision=precision)
    planned = plan(bundle.config, precision, bundle.manifest.context_length)
    written = bundle.manifest.files["model.onnx.data"].size_bytes
    # Each initializer begins on a page of 4,096 bytes, and a layer has about twenty.
    pages = 4096 * 20 * (bundle.config.num_hidden_layers + 1)
    assert planned.weights <= written <= planned.weights + pages


def test_planned_and_made_bundles_take_the_same() -> None:
    config = open_checkpoint(str(DEMO_MODEL)).config
    from exporters.describe import summarize_plan

    lines = summarize_plan(plan_tensors(list_weights(config), "int4"))
    assert measure_footprint(config, expand_plan(config, lines), 100) == plan(config, "int4")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told otherwise elsewhere")
def test_memory_of_the_demo_model_agrees_with_a_run(tmp_path: Path) -> None:
    bundle = api.export(str(DEMO_MODEL), tmp_path / "x", precision="int4")
    words = [sys.executable, "-c", RUN, str(bundle.path)]
    # Else glibc keeps freed activations or gives them back by chance: 101 to 130 MB in ten runs.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(words, capture_output=True, check=True, text=True, env=environment)
    measured = int(done.stdout)
    planned = plan(bundle.config, "int4", bundle.manifest.context_length).resident(544)
    # A tenth, as promised; at this size nearly all of it is the libraries.
    assert planned == pytest.approx(measured, rel=0.1)


def test_large_models_take_what_was_measured() -> None:
    """Figures of processes that held them: int4, context of 1,056 (README, Speed)."""
    for name, measured in (
        ("LFM2-350M", 0.51e9),
        ("LFM2-8B-A1B", 5.57e9),
        ("LFM2-24B-A2B", 14.8e9),
    ):
        config = open_checkpoint(f"synthetic:{name}").config
        assert plan(config, "int4").resident(1056) == pytest.approx(measured, rel=0.1)


def test_states_by_hand() -> None:
    config = open_checkpoint("synthetic:LFM2-24B-A2B").config
    footprint = plan(config, "int4")
    # 10 attention layers, keys and values, 8 heads of 64, float32.
    assert footprint.kv_per_token == 10 * 2 * 8 * 64 * 4
    # 30 convolutions of 2,048 channels, two columns each, float32.
    assert footprint.conv_state == 30 * 2048 * 2 * 4


def test_a_token_reads_the_chosen_experts_only() -> None:
    config = open_checkpoint("synthetic:LFM2-8B-A1B").config
    assert config.moe is not None
    footprint = plan(config, "fp32")
    # 1.56 billion parameters are active, a tied head among them; float32.
    active = sum(
        spec.num_elements * (4 / 32 if spec.role == "expert" else 1)
        for spec in list_weights(config)
    )
    assert footprint.read_weights == pytest.approx(4 * active, rel=1e-6)
    assert active == pytest.approx(1.56e9, rel=0.01)


def test_longest_context_is_where_memory_ends() -> None:
    footprint = plan(open_checkpoint("synthetic:LFM2-350M").config, "int4")
    longest = footprint.longest_context(2 * 10**9)
    assert footprint.resident(longest) <= 2 * 10**9 < footprint.resident(longest + 1)
    assert footprint.longest_context(10**6) < 0
