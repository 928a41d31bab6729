"""What storing each part of a model in fewer bits costs, measured at the model's output.

Enters: a checkpoint, units with their options, rows of token ids. Leaves: the same units with
costs, in nats of KL divergence. Only a unit's smallest option has a branch (`branches.py`); the
others' costs follow from it, since divergence grows as squared errors of weights do. T tokens
cost about as much as T (L + 3) tokens' way through the model of L layers: with 512 of them, 5,600
for 8 layers, 22,000 for 40.

On the demo model (8 layers, target cpu, 1,536 tokens; nats): the costs of 4 bits add up to 0.0324
in groups of 128, 0.0291 in 64 and 0.0237 in 32, and all units rounded at once were measured at
0.0319, 0.0280 and 0.0228. Costs that follow are within 9 % of measured ones in 4 bits (in the
mean 3 %); in 8 bits up to 0.00003 too small, which is too little to matter. Costs over 512 tokens
are within 15 % of those over 1,536 (in the mean 7 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from exporters.quantize.branches import Branch, measure_branches, round_trip
from exporters.quantize.budget import Option, Unit
from lfm2_deploy.contracts import Checkpoint, Progress

# Of a matrix so many rows, and of a layer's experts so many matrices, tell how options compare.
_SAMPLED_ROWS, _SAMPLED_TENSORS = 256, 12
# Hidden states of all branches, with what a mixture of experts makes of them: its input, and
# the sum of its experts' outputs, for all tokens at once.
_COPIES = 3
_STATE_BYTES = 2 << 30
_FEWEST_TOKENS = 64


def measure_costs(
    checkpoint: Checkpoint,
    units: Sequence[Unit],
    rows: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[Unit, ...]:
    """The same units with the cost of each option.

    Args:
        checkpoint: the weights.
        units: as `units.list_units` gives them, options smallest first.
        rows: token ids, all of one length; `fit_rows` says how many memory holds.
        progress: told of each layer.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    branches = [Branch(unit.layer, unit.kind, unit.options[0].plans) for unit in units]
    measured = measure_branches(checkpoint, branches, rows, progress)
    return tuple(
        replace(unit, options=_spread(checkpoint, unit, cost))
        for unit, cost in zip(units, measured, strict=True)
    )


def fit_rows(rows: Sequence[Sequence[int]], branches: int, hidden_size: int) -> list[list[int]]:
    """As much of the rows as keeps the hidden states of all branches within 2 GiB.

    512 tokens of a model of 40 layers and a width of 2,048 fit. Of more, later rows are left out,
    and then all rows are cut short.

    Args:
        rows: token ids, all of one length.
        branches: one for each unit.
        hidden_size: of the model.
    """
    most = _STATE_BYTES // ((1 + branches) * hidden_size * 4 * _COPIES)
    length = min(len(rows[0]), max(most, _FEWEST_TOKENS))
    return [list(row[:length]) for row in rows[: max(1, most // length)]]


def _spread(checkpoint: Checkpoint, unit: Unit, cost: float) -> tuple[Option, ...]:
    """The options, each with the first one's cost times what errors are of the first one's."""
    ratios = []
    names = list(unit.options[0].plans)
    for name in names[:: -(-len(names) // _SAMPLED_TENSORS)]:
        weight = checkpoint.read(name)
        sample = weight[:: -(-len(weight) // _SAMPLED_ROWS)]
        lost = [
            float(np.square(round_trip(sample.copy(), option.plans[name]) - sample).sum())
            for option in unit.options
        ]
        ratios.append(np.array(lost) / max(lost[0], np.finfo(np.float32).tiny))
    scale = np.mean(ratios, axis=0)
    return tuple(
        replace(option, cost=cost * float(ratio))
        for option, ratio in zip(unit.options, scale, strict=True)
    )
