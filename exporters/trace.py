"""One decoder layer -> a small ONNX graph, without any weight in memory.

A layer is built under torch's FakeTensorMode and exported with its parameters left
as named placeholders. Its primitives (`PRIMITIVES`) are traced as single nodes of
the domain "lfm2", so that passes replace them without recognising patterns; all
that is left between them is plain ONNX.

Fake tensors rather than the meta device: in torch 2.13 `torch.onnx.ops.symbolic`
returns CPU tensors while tracing (torch/onnx/ops/_symbolic_impl.py), which the meta
device refuses to mix with. Either holds no data. Source: torch 2.13.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx import ops as onnx_ops

from exporters.draft import SEMANTIC
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.model.decoder import DecoderLayer
from lfm2_deploy.model.layers import CachedAttention, CausalConv, RMSNorm
from lfm2_deploy.model.moe import Experts
from lfm2_deploy.states import BATCH, CAPACITY, list_states

OPSET = 21
SEQUENCE = "sequence_length"
# A dynamic dimension whose example is 1 would be taken for a constant.
_EXAMPLE = {BATCH: 2, SEQUENCE: 3, CAPACITY: 16}


@functools.lru_cache(maxsize=8)
def trace_layer(config: Lfm2Config, layer: int) -> ir.Graph:
    """Trace the layer numbered `layer`, or find what was traced before.

    Tracing takes a second or two, and graphs are copied where they are used.

    Returns:
        a graph with inputs x, states..., past_lengths, new_lengths; outputs y and new
        states; initializers named as the layer's parameters, without data.

    Raises:
        ExportError: torch could not trace it.
    """
    with FakeTensorMode():
        block = DecoderLayer(config, layer).eval()
        inputs = _example_inputs(config, layer)
    for module in block.modules():
        _make_primitive(module)
    try:
        with _quiet():
            program = torch.export.export(
                block, inputs, dynamic_shapes=_dynamic_shapes(config, layer), strict=False
            )
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
    except Exception as error:
        raise ExportError(
            f"layer {layer} could not be traced with torch {torch.__version__} ({error}); "
            "torch 2.13 is the version this was written for"
        ) from error
    assert exported is not None
    return exported.model.graph


def _example_inputs(config: Lfm2Config, layer: int) -> tuple[Any, ...]:
    batch, steps = _EXAMPLE[BATCH], _EXAMPLE[SEQUENCE]
    states = [
        torch.empty(s.concrete_shape(batch, _EXAMPLE[CAPACITY]))
        for s in list_states(config)
        if s.layer == layer
    ]
    past, new = (torch.empty(batch, dtype=torch.int64) for _ in range(2))
    return torch.empty(batch, steps, config.hidden_size), states, past, new


def _dynamic_shapes(config: Lfm2Config, layer: int) -> tuple[Any, ...]:
    dims = {name: torch.export.Dim(name) for name in _EXAMPLE}
    states = [
        {axis: dims[d] for axis, d in enumerate(s.shape) if isinstance(d, str)}
        for s in list_states(config)
        if s.layer == layer
    ]
    lengths = {0: dims[BATCH]}
    return {0: dims[BATCH], 1: dims[SEQUENCE]}, states, lengths, lengths


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes about torchvision and deprecations off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _emit(
    name: str, inputs: Sequence[Tensor], like: Sequence[Tensor], **attributes: Any
) -> tuple[Tensor, ...]:
    """One node of the semantic domain whose outputs have the shapes of `like`."""
    return tuple(
        onnx_ops.symbolic_multi_out(
            f"{SEMANTIC}::{name}",
            inputs,
            attributes,
            dtypes=[t.dtype for t in like],
            shapes=[t.shape for t in like],
            version=1,
        )
    )


def _rms_norm(module: RMSNorm) -> Callable[..., Any]:
    return lambda x: _emit("RMSNorm", (x, module.weight), [x], epsilon=module.eps)[0]


def _linear(module: nn.Linear) -> Callable[..., Any]:
    def forward(x: Tensor) -> Tensor:
        like = x.new_empty(*x.shape[:-1], module.out_features)
        return _emit("Linear", (x, module.weight), [like])[0]

    return forward


def _causal_conv(module: CausalConv) -> Callable[..., Any]:
    return lambda x, past, new: _emit("CausalConv", (x, module.weight, past, new), [x, past])


def _cached_attention(module: CachedAttention) -> Callable[..., Any]:
    def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        norms = (module.q_layernorm.weight, module.k_layernorm.weight)
        return _emit(
            "CachedAttention",
            (query, key, value, *norms, *rest),
            [query, rest[0], rest[1]],
            epsilon=module.q_layernorm.eps,
        )

    return forward


def _experts(module: Experts) -> Callable[..., Any]:
    def forward(x: Tensor, scores: Tensor, probabilities: Tensor) -> Tensor:
        weights = [w for e in module.in_order() for w in (e.w1.weight, e.w3.weight, e.w2.weight)]
        return _emit("Experts", (x, scores, probabilities, *weights), [x])[0]

    return forward


# Parameters are read inside `forward`, while torch.export has put its placeholders there.
PRIMITIVES: dict[type[nn.Module], Callable[[Any], Callable[..., Any]]] = {
    RMSNorm: _rms_norm,
    nn.Linear: _linear,
    CausalConv: _causal_conv,
    CachedAttention: _cached_attention,
    Experts: _experts,
}


def _make_primitive(module: nn.Module) -> None:
    make = PRIMITIVES.get(type(module))
    if make:
        module.forward = make(module)
