"""What a bundle's canary must give: the torch decoder on the weights as they are stored.

Layers run one after another over all rows together, so that each weight is read once; memory
holds one layer, or one expert, as in `lfm2_deploy/model/streaming.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exporters.draft import Draft
from exporters.options import ExportOptions
from exporters.quantize.rounded import RoundedCheckpoint
from lfm2_deploy.canary.record import (
    Call,
    Canary,
    Row,
    choose_sampled_ids,
    digest_logits,
    write_canary,
)
from lfm2_deploy.canary.script import ScriptRow, write_script
from lfm2_deploy.contracts import Checkpoint, FloatArray, Progress
from lfm2_deploy.model.streaming import StreamedDecoder
from lfm2_deploy.weights import EMBEDDING


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
    rounded = RoundedCheckpoint(checkpoint, draft.plan, rounder)
    write_canary(record_canary(rounded, script, progress), folder)


def record_canary(
    checkpoint: RoundedCheckpoint, script: Sequence[ScriptRow], progress: Progress
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
    logits = _compute_logits(checkpoint, script, progress)
    rows, at = [], 0
    for row in script:
        digests = [digest_logits(part, sampled) for part in logits[at : at + len(row.calls)]]
        calls = (Call(*pair) for pair in zip(row.calls, digests, strict=True))
        rows.append(Row(row.name, tuple(calls)))
        at += len(row.calls)
    return Canary(sampled, tuple(rows))


@torch.inference_mode()
def _compute_logits(
    checkpoint: RoundedCheckpoint, script: Sequence[ScriptRow], progress: Progress
) -> FloatArray:
    """Logits [P, V] after each call of each row, in order."""
    decoder, layers = StreamedDecoder(checkpoint), checkpoint.config.num_hidden_layers
    table = checkpoint.read_rows(EMBEDDING, [token for row in script for token in row.tokens])
    rows = [part[None] for part in torch.from_numpy(table).split([len(r.tokens) for r in script])]
    for number in range(layers):
        progress("recording the canary", number, layers)
        rows = _run_layer(decoder, number, rows)
    ends = [x[0, [end - 1 for end in row.ends]] for row, x in zip(script, rows, strict=True)]
    logits: FloatArray = decoder.read_head()(torch.cat(ends)).numpy()
    progress("recording the canary", layers, layers)
    return logits


def _run_layer(decoder: StreamedDecoder, number: int, rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows [1, S, H] of any lengths through one layer, each from an empty state."""
    layer, mixed = decoder.read_layer(number), []
    for x in rows:
        length = x.shape[1]
        states = decoder.empty_states(number, 1, length)
        y, _ = layer.mix(x, states, torch.zeros(1, dtype=torch.int64), torch.tensor([length]))
        mixed.append(x + y)
    # All tokens at once, so that each expert is read once.
    flat = torch.cat(mixed, 1)
    flat = flat + layer.feed_forward(layer.ffn_norm(flat))
    return list(flat.split([x.shape[1] for x in rows], 1))
