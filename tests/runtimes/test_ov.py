"""OpenVINO's adapter: which device runs, what it refuses, and chunks of every size."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes.ov_device
import runtimes.ov_stateful
from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.contracts import FloatArray, NamedStates, Runtime, Session
from lfm2_deploy.errors import (
    BundleError,
    ContextOverflowError,
    GenerationError,
    RuntimeUnavailableError,
)
from lfm2_deploy.places import load_runtime
from lfm2_deploy.prefix_store import PrefixStore
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.static_graphs import EXPERT_ROWS
from runtimes.static_experts import HostRouted

BundleOf = Callable[..., Bundle]
CHUNK = 7  # of the bundles that conftest makes
# Two float32 implementations, as a share of the largest logit; see test_exactness.py.
FLOAT_ORDER = 1e-4


def load(bundle: Bundle) -> Runtime:
    runtime: Runtime = find_runtime("openvino")(bundle, threads=1, device="cpu")
    return runtime


def make_row(length: int) -> list[int]:
    row: list[int] = np.random.default_rng(length).integers(8, 512, length).tolist()
    return row


@torch.inference_mode()
def run_transformers(model: Any, row: Sequence[int]) -> FloatArray:
    logits: FloatArray = model(torch.tensor([list(row)]), use_cache=False).logits[0].numpy()
    return logits


def close(actual: FloatArray, expected: FloatArray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < FLOAT_ORDER * np.abs(expected).max()


# Chunks of fixed size


@pytest.fixture(scope="module")
def static(bundle_of: BundleOf) -> Mapping[str, Runtime]:
    return {kind: load(bundle_of(kind, "fp32", "npu")) for kind in ("dense", "moe")}


@pytest.fixture(scope="module")
def stateful_of(bundle_of: BundleOf) -> Callable[[str], Runtime]:
    return functools.cache(lambda kind: load(bundle_of(kind, "fp32", "openvino-cpu")))


@pytest.mark.parametrize("length", range(1, 3 * CHUNK + 2))
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_prompt_of_every_length_goes_on_as_in_transformers(
    kind: str, length: int, static: Mapping[str, Runtime], transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(length + 4)
    session = static[kind].open(1, 64)
    logits = [session.prefill([row[:length]])]
    logits += [session.decode([token]) for token in row[length:]]
    expected = run_transformers(transformers_models[kind], row)
    close(np.concatenate(logits), expected[length - 1 :])


@pytest.mark.parametrize("first", range(1, CHUNK + 2))
def test_prompt_cut_anywhere_gives_the_same_logits(
    first: int, static: Mapping[str, Runtime], transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(2 * CHUNK + 3)
    session = static["dense"].open(1, 64)
    parts = [session.score([row[:first]])[0], session.score([row[first:]])[0]]
    close(np.concatenate(parts), run_transformers(transformers_models["dense"], row))


def test_context_can_be_filled_to_its_last_token(
    checkpoints: Mapping[str, Path],
    transformers_models: Mapping[str, Any],
    tmp_path: Path,
) -> None:
    place = tmp_path / "short"
    source = str(checkpoints["dense"])
    bundle = export(source, place, target="npu", precision="fp32", context_length=24, chunk=CHUNK)
    row = make_row(24)
    session = load(bundle).open()
    assert session.capacity == 24
    logits = [session.prefill([row[:22]]), session.decode([row[22]]), session.decode([row[23]])]
    expected = run_transformers(transformers_models["dense"], row)
    close(np.concatenate(logits), expected[21:])
    with pytest.raises(ContextOverflowError):
        session.decode([9])


@pytest.mark.parametrize("chunk", range(1, 10))
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_stateful_prefill_in_chunks_equals_transformers(
    kind: str,
    chunk: int,
    transformers_models: Mapping[str, Any],
    stateful_of: Callable[[str], Runtime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtimes.ov_stateful, "PREFILL_CHUNK", chunk)
    row = make_row(14)
    session = stateful_of(kind).open(1, 64)
    logits = [session.prefill([row[:12]]), session.decode([row[12]]), session.decode([row[13]])]
    close(np.concatenate(logits), run_transformers(transformers_models[kind], row)[11:])


# Experts, one graph each or a layer in one


def test_expert_with_more_tokens_than_a_call_takes_gives_the_same(
    checkpoints: Mapping[str, Path],
    transformers_models: Mapping[str, Any],
    tmp_path: Path,
) -> None:
    bundle = export(
        str(checkpoints["moe"]), tmp_path / "wide", target="npu", precision="fp32", chunk=80
    )
    row = make_row(80)  # of 8 experts each token takes 4: 40 tokens an expert
    assert len(row) * 4 / 8 > 2 * EXPERT_ROWS
    close(
        load(bundle).open(1, 128).score([row])[0], run_transformers(transformers_models["moe"], row)
    )


def test_only_chosen_experts_run(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    call = HostRouted._call

    def count(self: HostRouted, layer: int, expert: int, x: Any) -> FloatArray:
        calls.append((layer, expert))
        return call(self, layer, expert, x)

    monkeypatch.setattr(HostRouted, "_call", count)
    runtime = load(bundle_of("moe", "fp32", "npu"))
    runtime.open(1, 16).prefill([[9]])
    layers = {layer for layer, _ in calls}
    assert layers == {2, 3, 4, 5}
    assert len(calls) == len(set(calls)) == 4 * len(layers)


# Not int4: OpenVINO's CPU plugin rounds activations to 8 bits where experts are gathered.
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_whole_layers_of_experts_give_what_single_experts_give(
    precision: str, checkpoints: Mapping[str, Path], bundle_of: BundleOf, tmp_path: Path
) -> None:
    whole = export(
        str(checkpoints["moe"]), tmp_path / "whole",
        target="npu", precision=precision, chunk=CHUNK, experts="cpu",
    )  # fmt: skip
    assert {graph.device for graph in whole.manifest.graphs} == {"cpu", "target"}
    row = make_row(20)
    apart = load(bundle_of("moe", precision, "npu")).open(1, 64).score([row])[0]
    together = load(whole).open(1, 64).score([row])[0]
    # fp16: what goes to and comes from experts is float16: 4e-4 seen.
    tolerance = FLOAT_ORDER if precision == "fp32" else 3e-3
    assert np.abs(together - apart).max() < tolerance * np.abs(apart).max()


# Devices


def test_device_that_ran_is_told(static: Mapping[str, Runtime]) -> None:
    assert static["dense"].info.runtime == "openvino"
    assert static["dense"].info.device.startswith("CPU (")


@pytest.mark.parametrize(
    ("device", "remedy"),
    [("npu", "Intel NPU Driver"), ("gpu", "intel-opencl-icd"), ("gpu.3", "intel-opencl-icd")],
)
def test_missing_device_is_refused_with_its_driver(
    device: str, remedy: str, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.ov_device, "list_names", lambda: ["CPU"])
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime("openvino")(bundle_of("dense", "fp32", "npu"), device=device)
    assert f"finds no {device.upper()} here (it finds CPU)" in str(caught.value)
    assert remedy in str(caught.value)


def test_device_nobody_knows_is_refused(bundle_of: BundleOf) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no device 'tpu'.* known are npu, gpu, cpu"):
        find_runtime("openvino")(bundle_of("dense", "fp32", "npu"), device="tpu")


def test_device_of_another_target_leads_to_it(bundle_of: BundleOf) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"'cuda' .*--target webgpu or directml"):
        find_runtime("openvino")(bundle_of("dense", "fp32", "npu"), device="cuda")


def test_bundle_runs_on_its_own_device_or_not_at_all(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.ov_device, "list_names", lambda: ["CPU"])
    with pytest.raises(RuntimeUnavailableError, match="finds no NPU here"):
        find_runtime("openvino")(bundle_of("dense", "fp32", "npu"))


def test_bundle_of_another_runtime_is_refused(bundle_of: BundleOf) -> None:
    with pytest.raises(RuntimeUnavailableError, match="was made for runtime 'ort'"):
        load(bundle_of("dense", "fp32"))


def test_cpu_bundle_refuses_another_device(bundle_of: BundleOf) -> None:
    with pytest.raises(RuntimeUnavailableError, match="cannot run on 'npu'"):
        find_runtime("ort")(bundle_of("dense", "fp32"), device="npu")


@pytest.mark.parametrize("device", ["CPU", "cpu"])
def test_device_is_named_in_any_case(device: str, bundle_of: BundleOf) -> None:
    for bundle in (bundle_of("dense", "fp32"), bundle_of("dense", "fp32", "openvino-cpu")):
        runtime = load_runtime(bundle, threads=1, device=device)
        assert "cpu" in runtime.info.device.lower()


def test_device_may_be_named_as_its_target(bundle_of: BundleOf) -> None:
    bundle = bundle_of("dense", "fp32", "openvino-cpu")
    runtime = find_runtime("openvino")(bundle, threads=1, device="openvino-cpu")
    assert runtime.info.device.startswith("CPU (")


def test_device_without_a_name_is_refused(bundle_of: BundleOf) -> None:
    with pytest.raises(RuntimeUnavailableError, match="there is no device ''"):
        find_runtime("openvino")(bundle_of("dense", "fp32", "openvino-cpu"), device="")


# What may go wrong between calls


@pytest.fixture
def stateful(stateful_of: Callable[[str], Runtime]) -> Runtime:
    return stateful_of("dense")


def interrupt_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call raises after its states were written, as Ctrl-C may."""
    real = runtimes.ov_stateful.run

    def run(request: Any) -> None:
        real(request)
        monkeypatch.setattr(runtimes.ov_stateful, "run", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtimes.ov_stateful, "run", run)


def test_interrupted_call_is_not_built_upon(
    stateful: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = make_row(12)
    session, fresh = stateful.open(1, 32), stateful.open(1, 32)
    session.prefill([row[:5]])
    mark = session.mark()
    interrupt_next_run(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        session.prefill([row[5:9]])
    assert session.lengths == (5,)
    with pytest.raises(GenerationError, match=r"was interrupted .* rewind to a mark"):
        session.decode([9])
    session.rewind(mark)
    np.testing.assert_array_equal(session.prefill([row[5:]]), _in_pieces(fresh, row, 5))


def _in_pieces(session: Session, row: Sequence[int], first: int) -> FloatArray:
    session.prefill([row[:first]])
    return session.prefill([row[first:]])


@pytest.mark.parametrize("target", ["openvino-cpu", "npu"])
def test_snapshot_of_an_empty_session_can_be_restored(target: str, bundle_of: BundleOf) -> None:
    runtime, row = load(bundle_of("dense", "fp32", target)), make_row(9)
    session, fresh = runtime.open(1, 32), runtime.open(1, 32)
    empty, mark = session.snapshot(), session.mark()
    session.prefill([make_row(5)])
    session.restore(empty)
    expected = fresh.prefill([row])
    np.testing.assert_array_equal(session.prefill([row]), expected)
    session.reset()
    mark = session.mark()
    session.prefill([make_row(4)])
    session.rewind(mark)
    np.testing.assert_array_equal(session.prefill([row]), expected)


@pytest.mark.parametrize(
    ("key", "value"), [("chunk", 0), ("chunk", 9), ("context_length", 512), ("graphs", None)]
)
def test_graphs_that_are_not_the_manifests_are_refused(
    key: str, value: Any, bundle_of: BundleOf, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundle_of("dense", "fp32", "npu").path, tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    if key == "graphs":
        value = [graph for graph in manifest["graphs"] if graph["name"] != "head"]
    manifest[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"is damaged, or of another version: "):
        load(open_bundle(folder))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("target", ["openvino-cpu", "npu"])
def test_prompts_of_an_openvino_bundle_can_be_stored(
    target: str, precision: str, bundle_of: BundleOf, tmp_path: Path
) -> None:
    bundle = bundle_of("dense", precision, target)
    runtime, row = load(bundle), make_row(20)
    store = PrefixStore(tmp_path, bundle, min_tokens=4)
    first, second = runtime.open(1, 32), runtime.open(1, 32)
    logits = first.prefill([row])
    snapshot = first.snapshot()
    assert isinstance(snapshot, NamedStates)
    store.save(row, snapshot, logits[0])
    found = store.find(row)
    assert found is not None
    second.restore(found.states)
    np.testing.assert_array_equal(second.decode([9]), first.decode([9]))
