"""What a bundle's canary must give: the torch decoder on the weights as they are stored.

Beside what must come out, variants are run: with activations rounded to 8 bits, several times,
which is how far a healthy kernel may be off in each call of this very model, and with the experts'
bias left out, in all layers or in one, a fault that shows too little by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from exporters.canary_runs import Outcome, Variant, run_variants
from exporters.draft import Draft
from exporters.options import ExportOptions
from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy.canary.record import (
    Call,
    Canary,
    Coverage,
    Digest,
    Row,
    Signature,
    choose_sampled_ids,
    digest_logits,
    write_canary,
)
from lfm2_deploy.canary.run import (
    Difference,
    DoubleArray,
    compare_digest,
    list_expected,
    pick_logits,
)
from lfm2_deploy.canary.script import STEPS, ScriptRow, write_script
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress

# Levels a side in each run with rounded activations. 8 bits have 127; with a few less, errors are
# as large and others, so that a call in which some token nearly ties between two experts shows it.
_LEVELS = (127, 125, 123, 121)
# Nothing ties in a dense model: its calls differ little in what rounding does.
_LEVELS_OF_DENSE = (127, 125)
_NO_BIAS = "the experts' bias were left out"
# Of a signature so many calls are kept, and changes in so many units either way: 0.9 kB.
_SHOWN_CALLS, _UNITS = 4, 99
# So many layers have a signature of their own, spread evenly where there are more: with all, the
# canary of 38 mixtures would take 57 kB, and half as many tokens again to record.
_MOST_LAYERS = 8


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
    outcome = run_variants(checkpoint, _list_variants(checkpoint.config, script), progress)
    exact = {v.row.name: found for v, found in outcome.logits.items() if v.is_exact}
    digests = {
        name: [digest_logits(logits, sampled) for logits in found] for name, found in exact.items()
    }
    differences = _compare_rounded(outcome, digests, sampled)
    rows = tuple(_describe_row(row, digests[row.name], differences[row.name]) for row in script)
    noise = np.median([d.error for found in differences.values() for run in found for d in run])
    signatures = _list_signatures(outcome, {row.name: row for row in rows}, sampled)
    coverage = _count_experts(script, outcome)
    # The median: where rounding lets another expert run, it says little of what is usual.
    return Canary(sampled, _shorten(noise), rows, tuple(signatures), coverage)


def _list_variants(config: Lfm2Config, script: Sequence[ScriptRow]) -> list[Variant]:
    levels = _LEVELS_OF_DENSE if config.moe is None else _LEVELS
    variants = [*map(Variant, script), *(Variant(row, n) for n in levels for row in script)]
    if config.moe is not None and config.moe.use_expert_bias:
        layers = tuple(config.moe_layers)
        (row,) = (row for row in script if row.name == STEPS)
        left_out = dict.fromkeys([layers, *((layer,) for layer in _spread(layers))])
        variants += [Variant(row, no_bias=some) for some in left_out]
    return variants


def _spread(layers: Sequence[int]) -> list[int]:
    """All, or as many as have a signature of their own; the first and the last are among them."""
    count = min(len(layers), _MOST_LAYERS)
    places = np.linspace(0, len(layers) - 1, count).round().astype(int)
    return [layers[place] for place in places]


def _compare_rounded(
    outcome: Outcome, digests: Mapping[str, Sequence[Digest]], sampled: Sequence[int]
) -> dict[str, list[list[Difference]]]:
    """Of each row, for each run with rounded activations, how far each call is off."""
    found: dict[str, list[list[Difference]]] = {name: [] for name in digests}
    for variant, logits in outcome.logits.items():
        if variant.levels:
            pairs = zip(digests[variant.row.name], logits, strict=True)
            found[variant.row.name].append([compare_digest(*pair, sampled) for pair in pairs])
    return found


def _describe_row(
    row: ScriptRow, digests: Sequence[Digest], runs: Sequence[Sequence[Difference]]
) -> Row:
    calls = []
    for tokens, digest, *found in zip(row.calls, digests, *runs, strict=True):
        calls.append(Call(tokens, digest, _shorten(max(d.error for d in found))))
    return Row(row.name, tuple(calls))


def _list_signatures(
    outcome: Outcome, rows: Mapping[str, Row], sampled: Sequence[int]
) -> Iterator[Signature]:
    """Of each fault that moves the logits at all."""
    for variant, logits in outcome.logits.items():
        if not variant.no_bias:
            continue
        row = rows[variant.row.name]
        changes = [
            pick_logits(call.expected, found.astype(np.float64), sampled)
            - list_expected(call.expected)
            for call, found in zip(row.calls, logits, strict=True)
        ]
        layers = variant.no_bias
        where = f" of layer {layers[0]}" if len(layers) == 1 else ""
        fault = _NO_BIAS.replace(" were", f"{where} were")
        signature = _describe_changes(fault, row, changes)
        if signature is not None:
            yield signature


def _describe_changes(fault: str, row: Row, changes: Sequence[DoubleArray]) -> Signature | None:
    """The calls that show a fault most, as parts of what rounding does to them."""
    shown = [
        float(np.sqrt(np.square(change).mean())) / call.expected.spread / max(call.noise, 1e-30)
        for call, change in zip(row.calls, changes, strict=True)
    ]
    best = sorted(sorted(range(len(shown)), key=lambda n: -shown[n])[:_SHOWN_CALLS])
    largest = max(float(np.abs(changes[n]).max()) for n in best)
    # Six digits of logits are kept: below, it is nothing but what they leave.
    if largest < 1e-4:
        return None
    unit = _shorten(largest / _UNITS)
    counts = (tuple(round(float(x) / unit) for x in changes[n]) for n in best)
    return Signature(fault, row.name, tuple(best), unit, tuple(counts))


def _count_experts(script: Sequence[ScriptRow], outcome: Outcome) -> Coverage | None:
    """How many experts, of all layers, the rows reach."""
    mixtures = list(zip(*(outcome.chosen[row.name] for row in script), strict=True))
    if not mixtures:
        return None
    ends = [[end - 1 for end in row.ends] for row in script]
    run = compared = experts = 0
    for chosen in mixtures:
        experts += chosen[0].shape[1]
        run += int(np.concatenate(chosen).any(0).sum())
        last = [marks[at] for marks, at in zip(chosen, ends, strict=True)]
        compared += int(np.concatenate(last).any(0).sum())
    return Coverage(experts, run, compared)


def _shorten(value: float | np.floating) -> float:
    return float(f"{value:.3g}")
