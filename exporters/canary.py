"""What a bundle's canary must give: the torch decoder on the weights as they are stored.

Layers run one after another over all rows together, so that each weight is read once; memory
holds one layer, or one expert, as in `lfm2_deploy/model/streaming.py`. Short rows are run in
variants besides: with activations rounded to 8 bits, which is how far a healthy kernel may be off
for this very model, and with the experts' bias left out, a fault that shows too little by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exporters.draft import Draft
from exporters.options import ExportOptions
from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy.canary.record import (
    Call,
    Canary,
    Digest,
    Row,
    Signature,
    choose_sampled_ids,
    digest_logits,
    write_canary,
)
from lfm2_deploy.canary.run import compare_digest, list_expected, pick_logits
from lfm2_deploy.canary.script import ScriptRow, write_script
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, FloatArray, Progress
from lfm2_deploy.model.decoder import DecoderLayer
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.model.streaming import StreamedDecoder
from lfm2_deploy.weights import EMBEDDING

# Rows up to this length are run in variants, too.
_SHORT = 32
# Neighbours that share a scale where kernels round activations to 8 bits.
_ROUNDED_TOGETHER = 128
_NO_BIAS = "the experts' bias were left out"


@dataclass(frozen=True, slots=True)
class _Run:
    """A row in one variant.

    Args:
        row: what to append.
        rounds: whether activations are rounded to 8 bits.
        has_bias: whether experts are chosen with their bias.
    """

    row: ScriptRow
    rounds: bool = False
    has_bias: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether this is what must come out."""
        return self.has_bias and not self.rounds


def add_canary(
    folder: Path, checkpoint: Checkpoint, draft: Draft, options: ExportOptions, progress: Progress
) -> None:
    """Put canary.json into a bundle's folder, where one was asked for.

    Args:
        folder: of the bundle, before it is sealed.
        checkpoint: the weights that it was made from.
        draft: one of its graphs; has the plan and the context.
        options: what was asked for.
        progress: told of each layer.
    """
    if not options.canary:
        return
    rounder = options.target.rounding(options.precision)
    script = write_script(options.canary, options.fixed_chunk, draft.context_length)
    rounded = StoredCheckpoint(checkpoint, draft.plan, rounder)
    write_canary(record_canary(rounded, script, progress), folder)


def record_canary(
    checkpoint: StoredCheckpoint, script: Sequence[ScriptRow], progress: Progress
) -> Canary:
    """Compute what must come of a script.

    Args:
        checkpoint: the weights as the bundle holds them; each is read once, the table of a tied
            head twice.
        script: rows of calls.
        progress: told of each layer.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    sampled = choose_sampled_ids(checkpoint.config.vocab_size)
    runs = _list_runs(checkpoint.config, script)
    results = dict(zip(runs, _compute_logits(checkpoint, runs, progress), strict=True))
    digests = {
        run.row.name: [digest_logits(logits, sampled) for logits in found]
        for run, found in results.items()
        if run.is_exact
    }
    rows = []
    for row in script:
        calls = zip(row.calls, digests[row.name], strict=True)
        rows.append(Row(row.name, tuple(Call(*call) for call in calls)))
    rounded = [(run, found) for run, found in results.items() if run.rounds]
    errors = [
        compare_digest(digest, logits, sampled).error
        for run, found in rounded
        for digest, logits in zip(digests[run.row.name], found, strict=True)
    ]
    signatures = tuple(
        Signature(_NO_BIAS, run.row.name, _list_changes(digests[run.row.name], found, sampled))
        for run, found in results.items()
        if not run.has_bias
    )
    # The median: where rounding lets another expert run, it says little of what is usual.
    noise = float(f"{np.median(errors):.3g}")
    return Canary(sampled, noise, tuple(rows), signatures)


def _list_runs(config: Lfm2Config, script: Sequence[ScriptRow]) -> list[_Run]:
    short = [row for row in script if len(row.tokens) <= _SHORT]
    runs = [*map(_Run, script), *(_Run(row, rounds=True) for row in short)]
    if config.moe is not None and config.moe.use_expert_bias:
        runs += [_Run(row, has_bias=False) for row in short]
    return runs


def _list_changes(
    digests: Sequence[Digest], logits: FloatArray, sampled: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    changes = (
        pick_logits(digest, found.astype(np.float64), sampled) - list_expected(digest)
        for digest, found in zip(digests, logits, strict=True)
    )
    return tuple(tuple(float(f"{x:.4g}") for x in change) for change in changes)


@torch.inference_mode()
def _compute_logits(
    checkpoint: StoredCheckpoint, runs: Sequence[_Run], progress: Progress
) -> Iterator[FloatArray]:
    """Of each run, logits [C, V] after each of its calls."""
    decoder, layers = StreamedDecoder(checkpoint), checkpoint.config.num_hidden_layers
    sizes = [len(run.row.tokens) for run in runs]
    table = checkpoint.read_rows(EMBEDDING, [token for run in runs for token in run.row.tokens])
    states = [part[None] for part in torch.split(torch.from_numpy(table), sizes)]
    for number in range(layers):
        progress("recording the canary", number, layers)
        states = _run_layer(decoder, number, runs, states)
    head = decoder.read_head()
    progress("recording the canary", layers, layers)
    for run, x in zip(runs, states, strict=True):
        x = x[0, [end - 1 for end in run.row.ends]]
        logits: FloatArray = head(_round(x) if run.rounds else x).numpy()
        yield logits


def _run_layer(
    decoder: StreamedDecoder, number: int, runs: Sequence[_Run], states: Sequence[Tensor]
) -> list[Tensor]:
    """Rows [1, S, H] of any lengths through one layer, each from an empty state."""
    layer, mixed = decoder.read_layer(number), []
    for run, x in zip(runs, states, strict=True):
        length = x.shape[1]
        empty = decoder.empty_states(number, 1, length)
        past, new = torch.zeros(1, dtype=torch.int64), torch.tensor([length])
        with _rounding(layer, run.rounds):
            y, _ = layer.mix(x, empty, past, new)
        mixed.append(x + y)
    if isinstance(layer.feed_forward, SparseMoe):
        return _run_experts(layer, layer.feed_forward, runs, mixed)
    results = []
    for run, x in zip(runs, mixed, strict=True):
        with _rounding(layer, run.rounds):
            results.append(x + layer.feed_forward(layer.ffn_norm(x)))
    return results


def _run_experts(
    layer: DecoderLayer, block: SparseMoe, runs: Sequence[_Run], states: Sequence[Tensor]
) -> list[Tensor]:
    """A mixture over the tokens of all runs at once, so that each expert is read once."""
    inputs, scores, probabilities = [], [], []
    for run, x in zip(runs, states, strict=True):
        normed = layer.ffn_norm(x)
        score, probability = block.router(normed)
        inputs.append(_round(normed) if run.rounds else normed)
        scores.append(score if run.has_bias else probability)
        probabilities.append(probability)
    joined = (torch.cat(parts, 1) for parts in (inputs, scores, probabilities))
    parts = torch.split(block.experts(*joined), [x.shape[1] for x in states], 1)
    return [x + y for x, y in zip(states, parts, strict=True)]


@contextmanager
def _rounding(layer: DecoderLayer, rounds: bool) -> Iterator[None]:
    """Let every projection of a layer round what it multiplies to 8 bits, where asked for."""
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)] if rounds else []
    hooks = [m.register_forward_pre_hook(lambda m, given: (_round(given[0]),)) for m in linear]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _round(x: Tensor) -> Tensor:
    """[..., K] in 8 bits, with a scale for each group, and float32 again."""
    width = x.shape[-1]
    group = _ROUNDED_TOGETHER if width % _ROUNDED_TOGETHER == 0 else width
    groups = x.view(*x.shape[:-1], -1, group)
    step = (groups.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return (torch.round(groups / step) * step).view(x.shape)
