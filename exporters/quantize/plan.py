"""(tensor, precision) -> how it is stored, and why. Pure: no arrays, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, get_args

from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import WeightSpec

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Rounding = Literal["nearest", "search", "recover"]

# How many neighbours share a scale. Kernels read 8 bytes more for each group, and decoding
# is as fast as memory is read, so each kind of tensor has the largest that costs little:
# int4 of the demo model has a KL divergence of 0.0215 nats with 32 everywhere, and 0.0264
# so (tables +0.0001, experts +0.002, dense feed-forward +0.0027); mixers would add 0.002 at
# 64 and 0.004 at 128.
_GROUPS: Mapping[str, int] = {
    "embedding": 256,
    "head": 256,
    "expert": 128,
    "feed_forward": 128,
    "mixer": 32,
}
SMALLEST_GROUP = 32
_EXACT = {
    "router": "a router decides which expert runs; rounding it changes decisions",
    "bias": "selects experts; a few numbers",
    "norm": "a few numbers, multiplied into everything",
    "conv": "a few numbers for each channel",
}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How one tensor is stored.

    Args:
        bits: 32 or 16 (floating point), 8 or 4 (symmetric integers).
        group: how many neighbours along the input axis share a scale; 0 for floats.
        reason: why, for `inspect` and the manifest.
        rounding: how levels are chosen; "recover" where values lie on their grid already.
        narrow_range: the lowest level is never used.
    """

    bits: int
    group: int
    reason: str
    rounding: Rounding = "search"
    narrow_range: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether integers and scales are stored."""
        return self.group > 0


def plan_tensor(weight: WeightSpec, precision: Precision) -> TensorPlan:
    """Decide how one tensor is stored.

    Args:
        weight: the tensor.
        precision: what the user asked for.

    Raises:
        ExportError: the tensor's width does not divide into groups.
    """
    if weight.role in _EXACT:
        return TensorPlan(32, 0, _EXACT[weight.role])
    if precision == "fp32":
        return TensorPlan(32, 0, "fp32 was asked for")
    if precision == "fp16":
        return TensorPlan(16, 0, "fp16 was asked for")
    group = _choose_group(weight)
    if weight.role in ("embedding", "head"):
        return TensorPlan(8, group, "every token passes through it, and it is stored once")
    bits = 4 if precision == "int4" else 8
    return TensorPlan(bits, group, f"{precision} was asked for")


def _choose_group(weight: WeightSpec) -> int:
    kind: str = weight.role
    if kind == "projection":
        kind = "feed_forward" if ".feed_forward." in weight.name else "mixer"
    # An expert's three matrices share one group: their widths are each other's heights.
    width = gcd(*weight.shape) if kind == "expert" else weight.shape[-1]
    group = _GROUPS[kind]
    while width % group:
        group //= 2
    if group < SMALLEST_GROUP:
        raise ExportError(
            f"{weight.name} is {' x '.join(map(str, weight.shape))}, which groups of "
            f"{SMALLEST_GROUP} do not divide; export with --precision fp16 or fp32"
        )
    return group


def plan_in_groups(
    weights: Sequence[WeightSpec], precision: Precision, int4_group: int
) -> dict[str, TensorPlan]:
    """As `plan_tensors`, with one scale a row, or in int4 for each group.

    Args:
        weights: the tensors.
        precision: what the user asked for.
        int4_group: neighbours that share a scale in int4, where they divide a row; 0 for a
            whole row.

    Raises:
        ExportError: a row holds an odd number of int4 values.
    """
    return {weight.name: _plan_row(weight, precision, int4_group) for weight in weights}


def _plan_row(weight: WeightSpec, precision: Precision, int4_group: int) -> TensorPlan:
    if weight.role in _EXACT or precision in ("fp32", "fp16"):
        return plan_tensor(weight, precision)
    width = weight.shape[-1]
    if weight.role in ("embedding", "head"):
        return TensorPlan(8, width, "every token passes through it, and it is stored once")
    if precision == "int8":
        return TensorPlan(8, width, "int8 was asked for")
    if width % 2:
        raise ExportError(
            f"{weight.name} is {width} wide, and int4 values are stored in pairs; "
            "export with --precision int8 or fp16"
        )
    fits = int4_group and width % int4_group == 0
    return TensorPlan(4, int4_group if fits else width, "int4 was asked for")


def plan_tensors(weights: Sequence[WeightSpec], precision: Precision) -> dict[str, TensorPlan]:
    """The plan of a whole model, by canonical name."""
    return {weight.name: plan_tensor(weight, precision) for weight in weights}
