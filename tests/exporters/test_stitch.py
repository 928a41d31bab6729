"""The whole graph: stitched in numpy, lowered in ONNX Runtime, and the torch decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from exporters.lowering import build_draft
from exporters.options import ExportOptions
from exporters.quantize.plan import Precision
from exporters.stitch import BlockTracer, stitch
from exporters.targets.cpu import CPU
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.model.decoder import Decoder
from lfm2_deploy.states import list_states
from lfm2_deploy.weights import list_weights
from runtimes.reference import load as load_reference

from .graphs import Arrays, evaluate, read_as_stored, run_in_ort
from .semantic_ops import Array

CAPACITY = 24
HELD = np.array([0, 9, 3])
NEW = np.array([6, 1, 4])
KEEP = 6

# A share of the largest output: float32 sums in other orders, over four layers; 2e-6 seen.
FLOAT_ORDER = 2e-5
# The same share where kernels round activations to a 127th of their largest: 16 products in
# a row, each with some 0.5 % of noise; 3e-2 seen.
ROUNDED_ACTIVATIONS = 6e-2


@pytest.fixture
def trace_of_tiny(checkpoint: Checkpoint, trace_once: BlockTracer) -> BlockTracer:
    """Traces of the tiny model for any whose options do not reach a traced layer."""
    return lambda _, layer: trace_once(checkpoint.config, layer)


def make_feeds(config: Lfm2Config) -> Arrays:
    """Three rows that hold 0, 9 and 3 random tokens and get 6, 1 and 4."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, config.vocab_size, (3, 6))
    ids[np.arange(6) >= NEW[:, None]] = -1
    feeds = {
        "input_ids": ids,
        "attention_mask": (np.arange(10) < (HELD + NEW)[:, None]).astype(np.int64),
        "logits_to_keep": np.array([KEEP]),
    }
    for spec in list_states(config):
        shape = spec.concrete_shape(3, CAPACITY)
        feeds[spec.input] = generator.normal(size=shape).astype(np.float32)
    return feeds


def pick_meaningful(outputs: Arrays) -> Arrays:
    """Logits of real positions, and states up to each row's length."""
    used = np.arange(CAPACITY) < (HELD + NEW)[:, None]
    picked = {}
    for name, array in outputs.items():
        if name.startswith("window."):  # the CPU target's own; torch has none
            continue
        if name == "logits":
            array = array[np.arange(KEEP) >= KEEP - NEW[:, None]]
        elif not name.endswith(".conv"):
            array = array.swapaxes(1, 2)[used]
        picked[name] = array
    return picked


def run_torch(model: Decoder, feeds: Arrays) -> Arrays:
    specs = list_states(model.config)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with torch.inference_mode():
        logits, states = model(
            tensors["input_ids"].clamp(0),
            [tensors[spec.input] for spec in specs],
            torch.from_numpy(HELD),
            torch.from_numpy(NEW),
        )
    # As `logits_to_keep` orders them: each row's last ones, at the end.
    aligned = np.zeros((3, KEEP, model.config.vocab_size), np.float32)
    for row, count in enumerate(NEW):
        aligned[row, KEEP - count :] = logits[row, :count].numpy()
    return {"logits": aligned} | {
        spec.output: state.numpy() for spec, state in zip(specs, states, strict=True)
    }


def assert_equal(actual: Arrays, expected: Arrays, tolerance: float) -> None:
    actual, expected = pick_meaningful(actual), pick_meaningful(expected)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        error = np.abs(actual[name] - wanted).max() / np.abs(wanted).max()
        assert error < tolerance, name


def evaluate_stitched(
    checkpoint: Checkpoint, trace: BlockTracer, precision: Precision, feeds: Arrays
) -> Arrays:
    graph = stitch(checkpoint.config, trace)
    read = read_as_stored(checkpoint, precision)
    return evaluate(graph, checkpoint.config, read, feeds)


OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "head of its own": {"tie_word_embeddings": False},
    "weights not normalized": {"norm_topk_prob": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stitched_in_numpy_and_lowered_in_onnxruntime_equal_torch(
    make_checkpoint: Callable[..., Checkpoint],
    trace_of_tiny: BlockTracer,
    options: dict[str, Any],
) -> None:
    changed = make_checkpoint(**options)
    feeds = make_feeds(changed.config)
    expected = run_torch(load_reference(changed).model, feeds)
    assert_equal(evaluate_stitched(changed, trace_of_tiny, "fp32", feeds), expected, FLOAT_ORDER)
    draft = build_draft(changed.config, ExportOptions(CPU, "fp32"), trace_of_tiny)
    assert_equal(run_in_ort(draft, changed, feeds), expected, FLOAT_ORDER)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp16", FLOAT_ORDER), ("int8", ROUNDED_ACTIVATIONS), ("int4", ROUNDED_ACTIVATIONS)],
)
def test_lowered_to_less_precision_equals_stitched_with_rounded_weights(
    make_checkpoint: Callable[..., Checkpoint],
    trace_of_tiny: BlockTracer,
    precision: Precision,
    tolerance: float,
) -> None:
    # Every expert takes part: near a tie, a rounded activation may rightly choose another.
    decided = make_checkpoint(num_experts_per_tok=5)
    feeds = make_feeds(decided.config)
    expected = evaluate_stitched(decided, trace_of_tiny, precision, feeds)
    draft = build_draft(decided.config, ExportOptions(CPU, precision), trace_of_tiny)
    assert_equal(run_in_ort(draft, decided, feeds), expected, tolerance)


@pytest.mark.parametrize("kind", ["conv", "full_attention"])
def test_model_of_one_kind_of_layer_equals_torch(
    make_checkpoint: Callable[..., Checkpoint], kind: str
) -> None:
    alike = make_checkpoint(num_hidden_layers=2, layer_types=[kind] * 2, num_dense_layers=0)
    feeds = make_feeds(alike.config)
    draft = build_draft(alike.config, ExportOptions(CPU, "fp32"))
    expected = run_torch(load_reference(alike).model, feeds)
    assert_equal(run_in_ort(draft, alike, feeds), expected, FLOAT_ORDER)


def test_experts_without_bias_equal_torch(make_checkpoint: Callable[..., Checkpoint]) -> None:
    plain = make_checkpoint(
        num_hidden_layers=1, layer_types=["conv"], num_dense_layers=0, use_expert_bias=False
    )
    feeds = make_feeds(plain.config)
    draft = build_draft(plain.config, ExportOptions(CPU, "fp32"))
    expected = run_torch(load_reference(plain).model, feeds)
    assert_equal(run_in_ort(draft, plain, feeds), expected, FLOAT_ORDER)


def test_logits_to_keep_may_be_left_out_for_the_last_position(
    checkpoint: Checkpoint, trace_once: BlockTracer
) -> None:
    feeds = make_feeds(checkpoint.config)
    draft = build_draft(checkpoint.config, ExportOptions(CPU, "fp32"), trace_once)
    every = run_in_ort(draft, checkpoint, feeds)["logits"]
    del feeds["logits_to_keep"]
    last = run_in_ort(draft, checkpoint, feeds)["logits"]
    assert last.shape == (3, 1, checkpoint.config.vocab_size)
    assert relative_error(last[:, 0], every[:, -1]) < FLOAT_ORDER


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_each_kind_of_layer_is_traced_once(
    make_checkpoint: Callable[..., Checkpoint], checkpoint: Checkpoint, trace_once: BlockTracer
) -> None:
    kinds = ["conv", "conv", "full_attention", "conv", "full_attention", "conv"]
    config = make_checkpoint(
        num_hidden_layers=6, layer_types=kinds, num_dense_layers=3, vocab_size=90
    ).config
    traced = []

    def trace(given: Lfm2Config, layer: int) -> ir.Graph:
        assert given is config
        traced.append(layer)
        alike = {("conv", False): 0, ("full_attention", False): 1}
        alike |= {("full_attention", True): 2, ("conv", True): 3}
        return trace_once(checkpoint.config, alike[kinds[layer], config.is_moe_layer(layer)])

    graph = stitch(config, trace)
    assert traced == [0, 2, 3, 4]
    operators = Counter(node.op_type for node in graph)
    assert operators["CausalConv"] == 4
    assert operators["CachedAttention"] == 2
    assert operators["Experts"] == 3


@pytest.mark.parametrize("tied", [True, False])
def test_stitched_weights_are_the_models_without_data(
    make_checkpoint: Callable[..., Checkpoint], trace_of_tiny: BlockTracer, tied: bool
) -> None:
    config = make_checkpoint(tie_word_embeddings=tied).config
    graph = stitch(config, trace_of_tiny)
    assert set(graph.initializers) == {weight.name for weight in list_weights(config)}
    assert all(value.const_value is None for value in graph.initializers.values())
    assert all(value.uses() for value in graph.initializers.values())


def test_stitched_graph_takes_and_gives_states_in_their_order(
    checkpoint: Checkpoint, trace_once: BlockTracer
) -> None:
    graph = stitch(checkpoint.config, trace_once)
    specs = list_states(checkpoint.config)
    first = ["input_ids", "attention_mask", "logits_to_keep"]
    assert names(graph.inputs) == [*first, *(spec.input for spec in specs)]
    assert names(graph.outputs) == ["logits", *(spec.output for spec in specs)]
    for value, spec in zip(graph.outputs[1:], specs, strict=True):
        assert value.shape == spec.shape


def names(values: Sequence[ir.Value]) -> list[str | None]:
    return [value.name for value in values]
