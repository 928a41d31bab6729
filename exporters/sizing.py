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
from exporters.quantize.budget import Unit, choose
from exporters.quantize.sensitivity import fit_rows, measure_costs
from exporters.quantize.units import list_units, measure_size
from exporters.stitch import BlockTracer
from exporters.trace import trace_layer
from exporters.writer import measure
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError
from lfm2_deploy.quantization_record import LayerError, QuantizationRecord, TensorError
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
) -> ExportOptions:
    """The same options, with the bits that suit a bundle of at most `options.max_size_bytes`.

    Args:
        checkpoint: the weights; read once.
        options: with a text to measure on.
        folder: where what was measured is kept for an export that goes on.
        progress: told of each layer.

    Raises:
        ExportError: no choice is so small; says how small one can be.
    """
    most = options.max_size_bytes
    if not most:
        return options
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
    priced = _measure(checkpoint, options, units, folder / _COSTS, progress)
    budget = max(least, most - fixed)
    for _ in range(_TRIES):
        choice = choose(priced, budget)
        changed = replace(options, changed=choice.plans)
        size = predict(changed)
        if size <= most:
            return changed
        # Graphs and the gaps between tensors depend on the choice, too.
        budget = max(least, choice.size_bytes - (size - most))
    raise ExportError(f"no choice of bits was found for --max-size {most:,}: ask for some more")


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
    tensors, layers = [], []
    if options.method.calibrates:
        plan = summarize_plan(options.plan_weights(checkpoint.config))
        tensors = [TensorError(line.name, 8, 1024, 0.01234, 0.01234) for line in plan]
        count = checkpoint.config.num_hidden_layers
        layers = [LayerError(n, 0.01234, 10**5, 10**5, 10**3) for n in range(count)]
    name = "" if options.text is None else options.text.name
    return QuantizationRecord(
        options.method.name, name, "0" * 64, 10**7, 10**3, 10**12, tuple(tensors), tuple(layers)
    )


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
            f"--max-size {options.max_size_bytes:,} bytes is too small: for target "
            f"{options.target.name} the smallest bundle of this model takes {smallest:,} bytes"
        )
    return sum(option.size_bytes for option in first)


def _measure(
    checkpoint: Checkpoint,
    options: ExportOptions,
    units: Sequence[Unit],
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
    spread = options.text.rows[:: -(-len(options.text.rows) // _ROWS)]
    rows = fit_rows(spread, len(units), checkpoint.config.hidden_size)
    found = measure_costs(checkpoint, units, rows, progress)
    costs = [[option.cost for option in unit.options] for unit in found]
    kept.parent.mkdir(exist_ok=True)
    # Half a file, of a process that was killed or a disk that is full, would stop who goes on.
    draft = kept.with_suffix(".new")
    draft.write_text(json.dumps({"of": told, "costs": costs}), encoding="ascii")
    os.replace(draft, kept)
    return found


def _price(unit: Unit, costs: Sequence[float]) -> Unit:
    options = zip(unit.options, costs, strict=True)
    return replace(unit, options=tuple(replace(o, cost=cost) for o, cost in options))
