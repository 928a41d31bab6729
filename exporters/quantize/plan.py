"""(tensor, precision) -> how it is stored, and why. Pure: no arrays, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lfm2_deploy.errors import ExportError
from lfm2_deploy.weights import WeightSpec

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

GROUP = 32
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
    """

    bits: int
    group: int
    reason: str

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
    if weight.shape[-1] % GROUP:
        raise ExportError(
            f"{weight.name} is {weight.shape[-1]} wide, which groups of {GROUP} do not divide; "
            "export with --precision fp16 or fp32"
        )
    if weight.role in ("embedding", "head"):
        return TensorPlan(8, GROUP, "every token passes through it, and it is stored once")
    bits = 4 if precision == "int4" else 8
    return TensorPlan(bits, GROUP, f"{precision} was asked for")


def plan_tensors(weights: Sequence[WeightSpec], precision: Precision) -> dict[str, TensorPlan]:
    """The plan of a whole model, by canonical name."""
    return {weight.name: plan_tensor(weight, precision) for weight in weights}
