"""Rows of a canary through the torch decoder, in variants: rounded, or with a bias left out.

Enters: the weights as a bundle stores them, and variants of rows. Leaves: logits after each call,
and which experts were chosen. Layers run one after another over all variants together, so that
each weight is read once; memory holds one layer, or one expert, as in
`lfm2_deploy/model/streaming.py`. A variant that differs from a layer on begins there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy.canary.script import ScriptRow
from lfm2_deploy.contracts import FloatArray, Progress
from lfm2_deploy.model.decoder import DecoderLayer
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.model.streaming import StreamedDecoder
from lfm2_deploy.weights import EMBEDDING

# Neighbours that share a scale where kernels round activations to 8 bits.
_ROUNDED_TOGETHER = 128


@dataclass(frozen=True, slots=True)
class Variant:
    """A row, and what is otherwise than it must be.

    Args:
        row: what to append.
        levels: to how many levels a side activations are rounded; 0 for not at all.
        no_bias: layers whose experts are chosen without their bias.
    """

    row: ScriptRow
    levels: int = 0
    no_bias: tuple[int, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether this is what must come out."""
        return not self.levels and not self.no_bias

    @property
    def begins(self) -> int:
        """The first layer that may give something else than the exact row's."""
        return 0 if self.levels or not self.no_bias else min(self.no_bias)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of variants.

    Args:
        logits: of each variant, float32 [C, V] after each of its calls.
        chosen: of each exact row, by its name, for each mixture whether a token chooses an
            expert: bool [S, E].
    """

    logits: Mapping[Variant, FloatArray]
    chosen: Mapping[str, Sequence[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]]


@torch.inference_mode()
def run_variants(
    checkpoint: StoredCheckpoint, variants: Sequence[Variant], progress: Progress
) -> Outcome:
    """Run all variants, each from an empty state.

    Args:
        checkpoint: each tensor is read once, the table of a tied head twice.
        variants: exact rows, and others of the same rows.
        progress: told of each layer.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    decoder, layers = StreamedDecoder(checkpoint), checkpoint.config.num_hidden_layers
    exact = {v.row.name: v for v in variants if v.is_exact}
    states = _embed(checkpoint, [v for v in variants if not v.begins])
    chosen: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]]
    chosen = {name: [] for name in exact}
    for number in range(layers):
        progress("recording the canary", number, layers)
        for variant in variants:
            if variant.begins == number and variant not in states:
                states[variant] = states[exact[variant.row.name]]
        states = _run_layer(decoder, number, states, chosen)
    head = decoder.read_head()
    progress("recording the canary", layers, layers)
    logits = {}
    for variant, x in states.items():
        last = x[0, [end - 1 for end in variant.row.ends]]
        logits[variant] = head(_round(last, variant.levels)).numpy()
    return Outcome(logits, chosen)


def _embed(checkpoint: StoredCheckpoint, variants: Sequence[Variant]) -> dict[Variant, Tensor]:
    sizes = [len(variant.row.tokens) for variant in variants]
    tokens = [token for variant in variants for token in variant.row.tokens]
    table = torch.from_numpy(checkpoint.read_rows(EMBEDDING, tokens))
    parts = (part[None] for part in torch.split(table, sizes))
    return dict(zip(variants, parts, strict=True))


def _run_layer(
    decoder: StreamedDecoder,
    number: int,
    states: Mapping[Variant, Tensor],
    chosen: Mapping[str, list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]],
) -> dict[Variant, Tensor]:
    """Rows [1, S, H] of any lengths through one layer, each from an empty state."""
    layer, mixed = decoder.read_layer(number), {}
    for variant, x in states.items():
        length = x.shape[1]
        empty = decoder.empty_states(number, 1, length)
        past, new = torch.zeros(1, dtype=torch.int64), torch.tensor([length])
        with _rounding(layer, variant.levels):
            y, _ = layer.mix(x, empty, past, new)
        mixed[variant] = x + y
    if isinstance(layer.feed_forward, SparseMoe):
        return _run_experts(layer, layer.feed_forward, number, mixed, chosen)
    results = {}
    for variant, x in mixed.items():
        with _rounding(layer, variant.levels):
            results[variant] = x + layer.feed_forward(layer.ffn_norm(x))
    return results


def _run_experts(
    layer: DecoderLayer,
    block: SparseMoe,
    number: int,
    states: Mapping[Variant, Tensor],
    chosen: Mapping[str, list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]],
) -> dict[Variant, Tensor]:
    """A mixture over the tokens of all variants at once, so that each expert is read once."""
    inputs, scores, probabilities = [], [], []
    for variant, x in states.items():
        normed = layer.ffn_norm(x)
        score, probability = block.router(normed)
        if variant.is_exact:
            best = score[0].topk(block.experts.moe.num_experts_per_tok, dim=-1).indices
            marks = torch.zeros_like(score[0], dtype=torch.bool).scatter_(-1, best, value=True)
            chosen[variant.row.name].append(marks.numpy())
        inputs.append(_round(normed, variant.levels))
        scores.append(probability if number in variant.no_bias else score)
        probabilities.append(probability)
    joined = (torch.cat(parts, 1) for parts in (inputs, scores, probabilities))
    parts = torch.split(block.experts(*joined), [x.shape[1] for x in states.values()], 1)
    return {variant: x + y for (variant, x), y in zip(states.items(), parts, strict=True)}


@contextmanager
def _rounding(layer: DecoderLayer, levels: int) -> Iterator[None]:
    """Let every projection of a layer round what it multiplies, where asked for."""
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)] if levels else []
    hooks = [
        m.register_forward_pre_hook(lambda m, given: (_round(given[0], levels),)) for m in linear
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round(x: Tensor, levels: int) -> Tensor:
    """[..., K] to so many levels a side, with a scale for each group, and float32 again."""
    if not levels:
        return x
    width = x.shape[-1]
    group = _ROUNDED_TOGETHER if width % _ROUNDED_TOGETHER == 0 else width
    groups = x.view(*x.shape[:-1], -1, group)
    step = (groups.abs().amax(-1, keepdim=True) / levels).clamp_min(1e-30)
    return (torch.round(groups / step) * step).view(x.shape)
