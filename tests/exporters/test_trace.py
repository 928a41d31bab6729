"""A traced layer says what the torch layer computes, and holds no weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from exporters.draft import SEMANTIC
from exporters.passes.clean_up import clean_up
from exporters.stitch import BlockTracer
from exporters.trace import trace_layer
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.model.decoder import Decoder, DecoderLayer, checkpoint_name
from lfm2_deploy.states import list_states

from .graphs import Arrays, evaluate, sketch
from .semantic_ops import Array

CONV_DENSE, ATTENTION_DENSE, ATTENTION_MOE, CONV_MOE = range(4)
LAYERS = pytest.mark.parametrize("layer", range(4), ids=["conv", "attn", "attn-moe", "conv-moe"])

# float32 sums of up to 160 products in torch against float64 ones, of numbers up to 10.
FLOAT_ORDER = 1e-5

MIXERS = {
    CONV_DENSE: {f"{SEMANTIC}:Linear": 2, f"{SEMANTIC}:CausalConv": 1, ":Split": 1, ":Mul": 2},
    ATTENTION_DENSE: {f"{SEMANTIC}:Linear": 4, f"{SEMANTIC}:CachedAttention": 1},
}
MIXERS |= {CONV_MOE: MIXERS[CONV_DENSE], ATTENTION_MOE: MIXERS[ATTENTION_DENSE]}
DENSE = {f"{SEMANTIC}:Linear": 3, ":Sigmoid": 1, ":Mul": 2}
# The gate, its sigmoid and its bias; all else is one node.
MOE = {f"{SEMANTIC}:Linear": 1, ":Sigmoid": 1, ":Add": 1, f"{SEMANTIC}:Experts": 1}
FORWARDS = {CONV_DENSE: DENSE, ATTENTION_DENSE: DENSE, CONV_MOE: MOE, ATTENTION_MOE: MOE}
AROUND = {f"{SEMANTIC}:RMSNorm": 2, ":Add": 2}


def make_feeds(checkpoint: Checkpoint, layer: int, graph: ir.Graph) -> Arrays:
    """Two rows that hold 4 and 0 tokens and get 3 and 2."""
    generator = np.random.default_rng(layer)
    shapes = [s.concrete_shape(2, 12) for s in list_states(checkpoint.config) if s.layer == layer]
    floats = [
        generator.normal(size=shape).astype(np.float32)
        for shape in [(2, 3, checkpoint.config.hidden_size), *shapes]
    ]
    names = [str(value.name) for value in graph.inputs]
    return dict(zip(names, [*floats, np.array([4, 0]), np.array([3, 2])], strict=True))


@torch.inference_mode()
def run_torch(checkpoint: Checkpoint, layer: int, feeds: Arrays) -> list[Array]:
    model = Decoder(checkpoint.config).eval()
    for name, parameter in model.named_parameters():
        tensor = torch.from_numpy(checkpoint.read(checkpoint_name(name)))
        parameter.data.copy_(tensor.view(parameter.shape))
    x, *states, past, new = (torch.from_numpy(array) for array in feeds.values())
    block = model.layers[layer]
    assert isinstance(block, DecoderLayer)
    y, present = block(x, states, past, new)
    return [tensor.numpy() for tensor in (y, *present)]


@LAYERS
def test_traced_layer_computes_what_the_torch_layer_does(
    checkpoint: Checkpoint, trace_once: BlockTracer, layer: int
) -> None:
    graph = trace_once(checkpoint.config, layer)
    feeds = make_feeds(checkpoint, layer, graph)

    def read(name: str) -> Array:
        return checkpoint.read(checkpoint_name(f"layers.{layer}.{name}"))

    traced = list(evaluate(graph, checkpoint.config, read, feeds).values())
    expected = run_torch(checkpoint, layer, feeds)
    real = np.array([[True, True, True], [True, True, False]])
    traced[0], expected[0] = traced[0][real], expected[0][real]
    assert len(traced) == len(expected)
    for actual, wanted in zip(traced, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=FLOAT_ORDER, rtol=0)


@LAYERS
def test_traced_layer_is_primitives_with_plain_arithmetic_between(
    checkpoint: Checkpoint, trace_once: BlockTracer, layer: int
) -> None:
    draft = sketch(checkpoint.config, "fp32", {})
    draft.graph = trace_once(checkpoint.config, layer).clone()
    clean_up(draft)
    seen = Counter(f"{node.domain}:{node.op_type}" for node in draft.graph)
    expected: Counter[str] = Counter()
    for part in (AROUND, MIXERS[layer], FORWARDS[layer]):
        expected.update(part)
    assert seen == expected


@LAYERS
def test_traced_layer_names_its_weights_as_the_layer_does(
    checkpoint: Checkpoint, trace_once: BlockTracer, layer: int
) -> None:
    with torch.device("meta"):
        parameters = dict(DecoderLayer(checkpoint.config, layer).named_parameters())
    weights = trace_once(checkpoint.config, layer).initializers
    assert weights.keys() == parameters.keys()


@LAYERS
def test_traced_layer_holds_no_numbers(
    checkpoint: Checkpoint, trace_once: BlockTracer, layer: int
) -> None:
    for name, value in trace_once(checkpoint.config, layer).initializers.items():
        assert value.const_value is not None, name
        assert isinstance(value.const_value.raw, FakeTensor), name


def test_layer_that_no_memory_could_hold_is_traced(
    make_checkpoint: Callable[..., Checkpoint],
) -> None:
    # Each of its 5 experts has three matrices of 2 TiB.
    size = 1 << 20
    config = make_checkpoint(hidden_size=size, moe_intermediate_size=size // 2).config
    graph = trace_layer(config, CONV_MOE)
    weight = graph.initializers["feed_forward.experts.4.w2.weight"]
    assert weight.shape == (size, size // 2)


def test_failing_tracer_is_one_error_with_layer_and_version(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no such op")

    trace_layer.cache_clear()  # another test may have traced this very layer
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ExportError) as caught:
        trace_layer(checkpoint.config, ATTENTION_DENSE)
    assert f"layer 1 could not be traced with torch {torch.__version__} (no such op)" in str(
        caught.value
    )
