"""The parts of a model that get their bits at once, and the ways a target can store each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

from exporters.quantize.budget import Option, Unit, UnitKind
from exporters.quantize.plan import Precision, TensorPlan
from exporters.targets.target import Target
from lfm2_deploy.weights import WeightSpec

_LAYER = re.compile(r"layers\.(\d+)\.(feed_forward)?")
_REASON = "what adds the smallest error within the size asked for"
_PLANNED: tuple[Precision, ...] = ("int4", "int8")


def list_units(weights: Sequence[WeightSpec], target: Target) -> tuple[Unit, ...]:
    """What there is to choose, in model order.

    A unit's options are what the target plans for it in int4 and in int8, and 4 bits in each of
    the target's groups that divides all its rows. Experts of a layer are one unit: a QMoE node
    has one width and one group for all of them.

    Args:
        weights: the model's, as `list_weights` gives them.
        target: where it will run.

    Raises:
        ExportError: a tensor does not divide into the target's groups.
    """
    possible = [precision for precision in _PLANNED if precision in target.precisions]
    plans = [target.plan(weights, precision) for precision in possible]
    chosen = [weight for weight in weights if plans[0][weight.name].is_quantized]
    units = []
    for place, members in groupby(chosen, key=_place):
        own = tuple(members)
        options = sorted(_list_options(own, target, plans), key=lambda option: option.size_bytes)
        units.append(Unit(*place, tuple(options)))
    return tuple(units)


def measure_size(weights: Sequence[WeightSpec], plans: Mapping[str, TensorPlan], scale: int) -> int:
    """Bytes of levels and scales, `scale` bytes each."""
    total = 0
    for weight in weights:
        plan = plans[weight.name]
        groups = weight.num_elements // plan.group if plan.group else 0
        total += weight.num_elements * plan.bits // 8 + groups * scale
    return total


def _place(weight: WeightSpec) -> tuple[int | None, UnitKind]:
    if weight.role == "embedding":
        return None, "embedding"
    if weight.role == "head":
        return None, "head"
    match = _LAYER.search(weight.name)
    assert match is not None
    return int(match[1]), "feed_forward" if match[2] else "mixer"


def _list_options(
    weights: Sequence[WeightSpec], target: Target, plans: Sequence[Mapping[str, TensorPlan]]
) -> Iterator[Option]:
    seen = set()
    for found in (*_list_groups(weights, target), *plans):
        own = {
            weight.name: TensorPlan(found[weight.name].bits, found[weight.name].group, _REASON)
            for weight in weights
        }
        shape = tuple(own.items())
        if shape not in seen:
            seen.add(shape)
            size = measure_size(weights, own, target.scale_bytes)
            yield Option(_describe(own.values()), own, size)


def _list_groups(
    weights: Sequence[WeightSpec], target: Target
) -> Iterator[Mapping[str, TensorPlan]]:
    # Both ways round for experts: their matrices' widths are each other's heights.
    widths = {size for w in weights for size in (w.shape if w.role == "expert" else w.shape[-1:])}
    has_experts = any(weight.role == "expert" for weight in weights)
    for group in target.expert_groups if has_experts else target.groups:
        if group and not any(width % group for width in widths):
            yield {weight.name: TensorPlan(4, group, _REASON) for weight in weights}
        elif not group and not any(width % 2 for width in widths):
            yield {weight.name: TensorPlan(4, weight.shape[-1], _REASON) for weight in weights}


def _describe(plans: Collection[TensorPlan]) -> str:
    bits = "/".join(map(str, sorted({plan.bits for plan in plans})))
    groups = "/".join(map(str, sorted({plan.group for plan in plans})))
    return f"{bits} bits, groups of {groups}"
