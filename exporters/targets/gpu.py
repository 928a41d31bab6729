"""What the targets for GPUs behind ONNX Runtime have in common."""

from __future__ import annotations

from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.gpu.frame import drop_unused_inputs, gpu_frame, widen_logits
from exporters.passes.lower_norm import lower_norm
from exporters.passes.lower_parameters import lower_parameters
from exporters.passes.weights import round_all_half
from exporters.quantize.plan import Precision
from exporters.quantize.stored import Rounder, round_packed
from exporters.targets.target import Pass, Written

FRAME: tuple[Pass, ...] = (clean_up, gpu_frame)
FIRST: tuple[Pass, ...] = (*FRAME, lower_norm)
LAST: tuple[Pass, ...] = (
    lower_parameters,
    widen_logits,
    remove_unused,
    share_common,
    remove_unused,
    drop_unused_inputs,
)


def compute_dtype(precision: Precision) -> str:
    """GPUs compute in float16; float32 serves to compare, and where a GPU has no float16."""
    return "float32" if precision == "fp32" else "float16"


def rounding(precision: Precision) -> Rounder:
    """Scales and all small weights are of the type that graphs compute in."""
    return round_packed if precision == "fp32" else round_all_half


def finish(written: Written) -> None:
    """Nothing is left to do: graphs and weights are what the runtime reads."""
