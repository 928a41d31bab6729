"""Long prompts of a mixture, run in parts and routed by the host, on the CPU provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import MoeConfig
from lfm2_deploy.gpu_graphs import EXPERTS, PREFILL, SUMMED
from runtimes import gpu_routed
from runtimes.directml import make_runtime
from runtimes.gpu_graph import Graph
from runtimes.gpu_memory import DeviceMemory
from runtimes.gpu_model import GpuRuntime
from runtimes.gpu_provider import load_graph_on_cpu
from runtimes.gpu_routed import RoutedPrompt, choose_size
from runtimes.routing import plan_calls

BundleOf = Callable[..., Bundle]
NEVER, ALWAYS = 1 << 30, 1
# Both sum the same products in another order: a few roundings of float32.
EXACT = 1e-5


def prompt(count: int) -> list[int]:
    return [(7 * n * n + n) % 500 for n in range(1, count + 1)]


def open_runtime(bundle: Bundle, routed_from: int) -> GpuRuntime:
    on_cpu = partial(load_graph_on_cpu, threads=1)
    return make_runtime(bundle, on_cpu, DeviceMemory("cpu"), "cpu", routed_from=routed_from)


@pytest.fixture(scope="module")
def bundle(bundle_of: BundleOf) -> Bundle:
    return bundle_of("moe", "fp32", "directml")


@pytest.fixture(scope="module")
def routed(bundle: Bundle) -> GpuRuntime:
    return open_runtime(bundle, ALWAYS)


@pytest.fixture(scope="module")
def dense(bundle: Bundle) -> GpuRuntime:
    return open_runtime(bundle, NEVER)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# Two is the shortest prompt of several; 64 and 128 are padded lengths; 300 tokens fill 512,
# with experts of several pieces and several calls of pieces.
@pytest.mark.parametrize("count", [2, 63, 64, 65, 128, 129, 300])
def test_routed_prompt_gives_what_the_dense_and_transformers_give(
    count: int, routed: GpuRuntime, dense: GpuRuntime, transformers_models: Mapping[str, Any]
) -> None:
    ids = prompt(count)
    found = routed.open(1).score([ids])[0]
    assert isinstance(routed.graph(count, count), RoutedPrompt)
    assert relative(found, dense.open(1).score([ids])[0]) < EXACT
    with torch.no_grad():
        truth = transformers_models["moe"](torch.tensor([ids])).logits[0].numpy()
    assert relative(found, truth) < EXACT
    assert relative(routed.open(1).prefill([ids])[0], truth[-1]) < EXACT


def test_tokens_after_a_routed_prompt_and_after_going_back_are_the_dense_ones(
    routed: GpuRuntime, dense: GpuRuntime
) -> None:
    logits = []
    for runtime in (routed, dense):
        session = runtime.open(1)
        session.prefill([prompt(100)])
        mark = session.mark()
        one = session.decode([3])
        session.decode([4])
        session.rewind(mark)
        assert np.array_equal(session.decode([3]), one)
        logits.append(np.concatenate([one, session.decode([5])]))
        session.reset()
        logits.append(session.prefill([prompt(70)]))
    assert relative(logits[0], logits[2]) < EXACT
    assert relative(logits[1], logits[3]) < EXACT


def test_two_sessions_do_not_disturb_each_other(routed: GpuRuntime) -> None:
    alone = routed.open(1)
    alone.prefill([prompt(90)])
    first, second = routed.open(1), routed.open(1)
    first.prefill([prompt(90)])
    second.prefill([prompt(100)[::-1]])
    assert np.array_equal(first.decode([9]), alone.decode([9]))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_routed_prompt_in_float16_differs_from_the_dense_by_rounding(
    precision: str, bundle_of: BundleOf
) -> None:
    bundle = bundle_of("moe", precision, "directml")
    found, expected = (
        open_runtime(bundle, start).open(1).score([prompt(150)])[0] for start in (ALWAYS, NEVER)
    )
    each = np.abs(found - expected).max(-1) / np.abs(expected).max(-1)
    # float16 has 11 bits, and some ten roundings follow one another; of a few tokens two
    # experts are so nearly equal that rounding chooses.
    assert np.median(each) < 3e-3
    assert np.mean(each < 1e-2) > 0.95


def test_weights_lie_on_the_device_once(bundle: Bundle) -> None:
    class Counting(DeviceMemory):
        def __init__(self) -> None:
            super().__init__("cpu")
            self.stacks = 0

        def upload(self, array: np.ndarray) -> Any:
            self.stacks += array.ndim == 3 and array.shape[0] == 8
            return super().upload(array)

    memory = Counting()
    on_cpu = partial(load_graph_on_cpu, threads=1)
    runtime = make_runtime(bundle, on_cpu, memory, "cpu", routed_from=128)
    session = runtime.open(1)
    session.prefill([prompt(10)])
    session.reset()
    session.prefill([prompt(200)])
    # Gate and up, and down, of each of four layers.
    assert memory.stacks == 2 * len(bundle.config.moe_layers)


def mix_by_hand(
    part: RoutedPrompt, layer: int, x: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The chosen experts' sum with a residual of ones, in float64, from the part's own weights."""
    bound = part._parts[EXPERTS].bound
    names = sorted({n for n in bound if f".{layer}." in n})
    down, gate_up = (bound[n].numpy().astype(np.float64) for n in names)
    y = np.ones(x.shape)
    for token, row in enumerate(scores):
        # The best first, and of equal ones the lower number.
        chosen = sorted(range(len(row)), key=lambda e: (-row[e], e))[:4]
        total = sum(float(weights[token, e]) for e in chosen) + 1e-6
        for e in chosen:
            gate, up = np.split(x[token] @ gate_up[e], 2)
            share = float(weights[token, e]) / total * 1.5
            y[token] += (gate / (1 + np.exp(-gate)) * up) @ down[e] * share
    return y


@pytest.mark.parametrize("situation", ["random", "ties", "one popular", "few used"])
def test_experts_part_adds_up_what_a_loop_over_tokens_does(
    situation: str, routed: GpuRuntime
) -> None:
    rng = np.random.default_rng(0)
    part = routed.graph(60, 1)
    assert isinstance(part, RoutedPrompt)
    scores = rng.random((60, 8)).astype(np.float32)
    if situation == "ties":
        scores[::2] = 0.5
        scores[1::4, 2:] = 0.25
    elif situation == "one popular":
        scores[:, 3] = 2
    elif situation == "few used":
        scores[:, [1, 2, 5, 7]] += 2
    probabilities = rng.random((60, 8)).astype(np.float32)
    x = rng.standard_normal((64, 128)).astype(np.float32)
    memory = DeviceMemory("cpu")
    memory.write(part._ends["x"], x[None])
    memory.write(part._ends["residual"], np.ones((1, 64, 128), np.float32))
    layer = 4
    found = part._mix(layer, scores, probabilities).numpy()[0]
    expected = mix_by_hand(part, layer, x[:60], scores, probabilities)
    assert relative(found[:60], expected) < EXACT
    # Padding goes to no expert.
    assert np.array_equal(found[60:], np.ones((4, 128)))


def test_pieces_of_more_than_one_sum_give_the_same(
    bundle: Bundle, routed: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(60)
    expected = routed.open(1).score([ids])[0]
    counts = []

    def count_calls(*args: Any, **sizes: int) -> Any:
        calls, places = plan_calls(*args, **sizes)
        counts.append(len(calls))
        return calls, places

    monkeypatch.setattr(gpu_routed, "choose_size", lambda steps, moe: 2)
    monkeypatch.setattr(gpu_routed, "plan_calls", count_calls)
    found = open_runtime(bundle, ALWAYS).open(1).score([ids])[0]
    assert min(counts) > SUMMED
    assert relative(found, expected) < EXACT


def test_layers_of_one_kind_share_a_session(bundle: Bundle) -> None:
    loaded = []

    def load(path: Any, dims: Mapping[str, int]) -> Any:
        loaded.append(path.name)
        return load_graph_on_cpu(path, dims, threads=1)

    runtime = make_runtime(bundle, load, DeviceMemory("cpu"), "cpu", routed_from=ALWAYS)
    runtime.open(1).prefill([prompt(100)])
    assert sorted(loaded) == [
        "decode.onnx",
        "prefill.conv.onnx",
        "prefill.experts.onnx",
        "prefill.first.onnx",
        "prefill.full_attention.onnx",
        "prefill.last.onnx",
        "prefill.sum.onnx",
    ]


class CountingSession:
    """A session that notes which outputs the host asks for."""

    def __init__(self, session: Any, read: set[str]) -> None:
        self._session, self._read = session, read

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind = binding.bind_output

        def note(name: str, *args: Any) -> None:
            self._read.add(name)
            bind(name, *args)

        binding.bind_output = note
        return binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def test_host_reads_nothing_but_the_routers_and_logits(bundle: Bundle) -> None:
    read: set[str] = set()

    def load(path: Any, dims: Mapping[str, int]) -> Any:
        return CountingSession(load_graph_on_cpu(path, dims, threads=1), read)

    runtime = make_runtime(bundle, load, DeviceMemory("cpu"), "cpu", routed_from=ALWAYS)
    runtime.open(1).prefill([prompt(100)])
    assert read == {"scores", "probabilities", "logits"}


def test_short_prompts_and_models_without_experts_are_not_routed(
    bundle: Bundle, bundle_of: BundleOf
) -> None:
    usual = open_runtime(bundle, 128)
    assert isinstance(usual.graph(64, 1), Graph)
    assert isinstance(usual.graph(65, 1), RoutedPrompt)
    plain = open_runtime(bundle_of("dense", "fp32", "directml"), ALWAYS)
    assert isinstance(plain.graph(65, 1), Graph)


def test_bundle_without_parts_runs_dense(bundle: Bundle) -> None:
    graphs = tuple(g for g in bundle.manifest.graphs if not g.name.startswith(f"{PREFILL}."))
    older = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    assert isinstance(open_runtime(older, ALWAYS).graph(65, 1), Graph)


def test_piece_holds_twice_an_equal_share_of_tokens_within_bounds() -> None:
    moe = MoeConfig(
        num_experts=32,
        num_experts_per_tok=4,
        num_dense_layers=2,
        moe_intermediate_size=1792,
        use_expert_bias=True,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
    sizes = {steps: choose_size(steps, moe) for steps in (64, 128, 256, 512, 1024, 4096)}
    assert sizes == {64: 16, 128: 32, 256: 64, 512: 128, 1024: 128, 4096: 128}
