"""A size that a bundle may have -> how each tensor is stored.

Which parts bear fewer bits is measured once on a few rows (`quantize/sensitivity.py`), and of all
choices within the size the one whose errors have the smallest sum is taken
(`quantize/budget.py`).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from exporters.describe import describe, summarize_plan
from exporters.lowering import lower_parts
from exporters.options import ExportOptions
from exporters.quantize.budget import Choice, Option, Unit, choose
from exporters.quantize.losses import shorten
from exporters.quantize.sensitivity import fit_rows, measure_costs
from exporters.quantize.units import list_units, measure_size
from exporters.stitch import BlockTracer
from exporters.trace import trace_layer
from exporters.writer import measure
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError
from lfm2_deploy.quantization_record import (
    LayerError,
    QuantizationRecord,
    SizeChoice,
    TensorError,
    UnitChoice,
    WeightError,
)
from lfm2_deploy.units import format_limit
from lfm2_deploy.weights import list_weights

# Predicting a size needs no weights, so that a choice that is a little too large is made again.
_TRIES = 8
# Costs over so few are as good as over more, within a tenth; they are spread over the text.
_ROWS = 8
_COSTS = "costs.json"
# generation_config.json and genai_config.json, and the manifest's lines of files.
_SMALL_FILES = 6000
# canary.json; seen: 22,000 (dense) to 30,000 (eight mixtures or more).
_CANARY = 32_000
# An IR's file in bytes of the ONNX graphs it is made of, and openvino-genai's tokenizer in bytes
# of tokenizer.json; seen: 11 and 0.9.
_XML, _OV_TOKENIZER = 13, 1


def fit_size(
    checkpoint: Checkpoint,
    options: ExportOptions,
    folder: Path,
    progress: Progress,
) -> tuple[ExportOptions, SizeChoice | None]:
    """The same options, with the bits that suit a bundle of at most `options.max_size_bytes`.

    Args:
        checkpoint: the weights; read once.
        options: with a text to measure on.
        folder: where what was measured is kept for an export that goes on.
        progress: told of each layer.

    Returns:
        The options, and for the manifest what they were chosen by; None without a size.

    Raises:
        ExportError: no choice is so small; says how small one can be.
    """
    most = options.max_size_bytes
    if not most:
        return options, None
    weights = list_weights(checkpoint.config)
    units = list_units(weights, options.target)
    predict = functools.partial(predict_size, checkpoint, functools.cache(trace_layer))
    usual = options.plan_weights(checkpoint.config)
    fixed = predict(options) - measure_size(
        [weight for weight in weights if usual[weight.name].is_quantized],
        usual,
        options.target.scale_bytes,
    )
    least = _find_smallest(units, predict, options)
    rows = _choose_rows(checkpoint, options, len(units))
    priced = _measure(checkpoint, options, units, rows, folder / _COSTS, progress)
    budget = max(least, most - fixed)
    for _ in range(_TRIES):
        choice = choose(priced, budget)
        changed = replace(options, changed=choice.plans)
        size = predict(changed)
        if size <= most:
            return changed, _record(priced, choice, budget, options, sum(map(len, rows)))
        # Graphs and the gaps between tensors depend on the choice, too.
        budget = max(least, choice.size_bytes - (size - most))
    raise ExportError(
        f"no choice of bits was found for --max-size {format_limit(most)}: ask for some more"
    )


def predict_size(checkpoint: Checkpoint, trace: BlockTracer, options: ExportOptions) -> int:
    """Bytes of a bundle before it is made: exact for ONNX, at most a little too large for others.

    Args:
        checkpoint: its config and side files count.
        trace: traces a layer.
        options: what to make.
    """
    lowered = lower_parts(checkpoint.config, options, trace)
    graphs = sum(map(len, lowered.files.values()))
    sides = {name: path.stat().st_size for name, path in checkpoint.side_files.items()}
    size = measure(lowered.book, lowered.offsets) + graphs + sum(sides.values())
    if any(part.file.endswith(".xml") for part in lowered.parts):
        size += _XML * graphs + _OV_TOKENIZER * sides.get("tokenizer.json", 0)
    size += _CANARY if options.canary else 0
    manifest = describe(checkpoint, lowered.first, options, _foresee(checkpoint, options))
    text = json.dumps({**asdict(manifest), "config": checkpoint.raw_config}, indent=1)
    return size + len(text) + len(json.dumps(checkpoint.raw_config)) + _SMALL_FILES


def _foresee(checkpoint: Checkpoint, options: ExportOptions) -> QuantizationRecord:
    """A record as long as the one to come."""
    plan = summarize_plan(options.plan_weights(checkpoint.config))
    lines = [(line.name, 8, 1024, 0.0001234, 0.0001234) for line in plan if line.group]
    tensors, layers = [], []
    if options.method.calibrates:
        tensors = [TensorError(*line) for line in lines]
        count = checkpoint.config.num_hidden_layers
        layers = [LayerError(n, 0.0001234, 10**5, 10**5, 10**3) for n in range(count)]
    return QuantizationRecord(
        options.method.name,
        "" if options.text is None else options.text.name,
        "0" * 64,
        10**7,
        10**3,
        10**12,
        tuple(tensors),
        tuple(layers),
        tuple(WeightError(*line) for line in lines),
        _foresee_choice(checkpoint, options),
    )


def _foresee_choice(checkpoint: Checkpoint, options: ExportOptions) -> SizeChoice:
    """The choice in its longest form."""
    units = list_units(list_weights(checkpoint.config), options.target)
    longest = [
        max(unit.options, key=lambda option: len(option.label + option.bits + option.group))
        for unit in units
    ]
    # A cost in its longest form has an exponent: 1.234e-05.
    priced = [replace(option, size_bytes=10**12, cost=1.234e-05) for option in longest]
    whole = [replace(u, options=(o,)) for u, o in zip(units, priced, strict=True)]
    choice = Choice(tuple(priced), 10**12, 1.234e-05)
    return _record(whole, choice, 10**12, options, 10**7)


def _find_smallest(
    units: Sequence[Unit], predict: Callable[[ExportOptions], int], options: ExportOptions
) -> int:
    """Bytes of all units in the smallest bundle there is.

    Raises:
        ExportError: it is larger than what was asked for.
    """
    # Options are in order of size. Graphs differ with the choice, so that only a prediction tells.
    first = [unit.options[0] for unit in units]
    plans = {name: plan for option in first for name, plan in option.plans.items()}
    smallest = predict(replace(options, changed=plans))
    if smallest > options.max_size_bytes:
        raise ExportError(
            f"--max-size {format_limit(options.max_size_bytes)} is too small: for target "
            f"{options.target.name} the smallest bundle of this model takes "
            f"{format_limit(smallest, up=True)}"
        )
    return sum(option.size_bytes for option in first)


def _measure(
    checkpoint: Checkpoint,
    options: ExportOptions,
    units: Sequence[Unit],
    rows: Sequence[Sequence[int]],
    kept: Path,
    progress: Progress,
) -> Sequence[Unit]:
    """The units with their costs, measured now or by an export that was interrupted."""
    assert options.text is not None
    told = [checkpoint.identity, options.text.sha256, options.target.name, len(options.text.rows)]
    if kept.is_file():
        raw = json.loads(kept.read_text(encoding="ascii"))
        if raw["of"] == told:
            return [_price(unit, costs) for unit, costs in zip(units, raw["costs"], strict=True)]
    found = measure_costs(checkpoint, units, rows, progress)
    costs = [[option.cost for option in unit.options] for unit in found]
    kept.parent.mkdir(exist_ok=True)
    # Half a file, of a process that was killed or a disk that is full, would stop who goes on.
    draft = kept.with_suffix(".new")
    draft.write_text(json.dumps({"of": told, "costs": costs}), encoding="ascii")
    os.replace(draft, kept)
    return found


def _choose_rows(checkpoint: Checkpoint, options: ExportOptions, units: int) -> list[list[int]]:
    """What costs are measured on: a few rows, spread over the text."""
    assert options.text is not None
    spread = options.text.rows[:: -(-len(options.text.rows) // _ROWS)]
    return fit_rows(spread, units, checkpoint.config.hidden_size)


def _record(
    units: Sequence[Unit], choice: Choice, budget: int, options: ExportOptions, tokens: int
) -> SizeChoice:
    """What the manifest keeps of a choice."""
    text = "" if options.text is None else options.text.name
    found = tuple(map(_record_unit, units, choice.options))
    return SizeChoice(
        budget, choice.size_bytes, shorten(max(choice.cost, 0.0)), text, tokens, found
    )


def _record_unit(unit: Unit, chosen: Option) -> UnitChoice:
    least = unit.options[0]  # the smallest
    # A sum of float32 differences may come out a little below zero where nothing is lost.
    return UnitChoice(
        unit.layer,
        unit.kind,
        chosen.label,
        chosen.bits,
        chosen.group,
        chosen.size_bytes,
        shorten(max(chosen.cost, 0.0)),
        least.label,
        least.bits,
        least.group,
        shorten(max(least.cost, 0.0)),
    )


def _price(unit: Unit, costs: Sequence[float]) -> Unit:
    options = zip(unit.options, costs, strict=True)
    return replace(unit, options=tuple(replace(o, cost=cost) for o, cost in options))
