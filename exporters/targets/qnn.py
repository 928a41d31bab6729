"""Qualcomm's HTP through onnxruntime-qnn: graphs of fixed shape for the NPU, small ones beside it.

    embed     CPU   token ids -> embeddings
    prefill   NPU   a chunk of a prompt
    decode    NPU   one token
    head      CPU   hidden states -> logits

and for a mixture of experts, whose prefill and decode graphs are cut at each expert layer:

    routers.N     CPU   of layer N, in float32, since rounding changes which expert runs
    experts.N.E   NPU   each expert, called with the tokens that chose it

Unlike OpenVINO's, each graph has a file of its own, since onnxruntime runs a file as a whole.
With int8 and int4 weights activations are rounded to 16 bits, in ranges that calibration finds.
What was executed and where: docs/qnn.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from exporters.draft import MICROSOFT
from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.lower_embedding import lower_embedding
from exporters.passes.lower_linear import lower_linear as lower_linear_for_cpu
from exporters.passes.lower_parameters import lower_parameters
from exporters.passes.ov.cut_experts import cut_segments, only_experts, only_routers
from exporters.passes.ov.static_attention import lower_attention_with
from exporters.passes.ov.static_frame import only_embedding, only_head, static_frame
from exporters.passes.qnn.activations import quantize_activations
from exporters.passes.qnn.conv import lower_conv
from exporters.passes.qnn.linear import lower_linear, project
from exporters.passes.qnn.mask import add_masks, take_row_mask
from exporters.passes.qnn.norm import lower_norm, rms_norm
from exporters.passes.qnn.segment import only_segment
from exporters.passes.qnn.weights import round_turned
from exporters.quantize.calibrate import Calibration, measure_static
from exporters.quantize.plan import Precision, TensorPlan, plan_in_groups, plan_tensor
from exporters.quantize.ranges import Ranges
from exporters.targets.target import Part, Pass, Target, Wanted, Written
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.static_graphs import (
    DECODE,
    EMBED,
    EMBEDS,
    EXPERTS,
    HEAD,
    PREFILL,
    ROUTERS,
    name_hidden,
)
from lfm2_deploy.weights import WeightSpec

CHUNK = 64
CONTEXT = 1024
# RMSNormalization came with 23.
_OPSET = 23
_EDGE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "int4")
_ROUNDED: tuple[Precision, ...] = ("int8", "int4")
_LAST: tuple[Pass, ...] = (lower_parameters, remove_unused, share_common, remove_unused)


def make_parts(wanted: Wanted) -> tuple[Part, ...]:
    """The graphs of a bundle."""
    dtype = _EDGE[state_dtype(wanted.precision)]
    embed = (clean_up, only_embedding(dtype), lower_embedding)
    head = (clean_up, only_head(dtype), lower_linear_for_cpu)
    return (
        _part(EMBED, embed, "cpu"),
        *_segments(wanted, PREFILL, wanted.chunk, dtype),
        *_segments(wanted, DECODE, 1, dtype),
        _part(HEAD, head, "cpu"),
        *_experts(wanted, dtype),
    )


def _part(name: str, passes: tuple[Pass, ...], device: str = "target") -> Part:
    last = _LAST if device == "cpu" else ()
    return Part(name, (*passes, *last), f"{name}.onnx", device)


def _segments(wanted: Wanted, name: str, steps: int, dtype: ir.DataType) -> list[Part]:
    layers = list_expert_layers(wanted.config)
    starts = [EMBEDS, *map(name_hidden, layers)]
    lower = lower_layers(wanted.config, steps, dtype)
    quantize = quantize_activations(wanted.ranges)
    if not layers:
        return [_part(name, (*lower, quantize))]
    return [
        _part(f"{name}.{number}", (*lower, only_segment(start), quantize))
        for number, start in enumerate(starts)
    ]


def lower_layers(config: Lfm2Config, steps: int, dtype: ir.DataType) -> tuple[Pass, ...]:
    """From a stitched model to one float graph of its layers."""
    return (
        clean_up,
        static_frame(steps, dtype),
        *([] if config.moe is None else [cut_segments(steps, dtype)]),
        lower_norm,
        lower_conv,
        take_row_mask,
        lambda draft: lower_attention_with(draft, rms_norm, add_masks),
        lower_linear,
        *_LAST,
    )


def _experts(wanted: Wanted, dtype: ir.DataType) -> list[Part]:
    if wanted.config.moe is None:
        return []
    quantize, parts = quantize_activations(wanted.ranges), []
    for layer in list_expert_layers(wanted.config):
        router = (clean_up, only_routers(dtype, [layer]), lower_linear_for_cpu)
        parts.append(_part(f"{ROUTERS}.{layer}", router, "cpu"))
        for expert in range(wanted.config.moe.num_experts):
            passes = (clean_up, only_experts(layer, dtype, project, [expert]), *_LAST, quantize)
            parts.append(_part(f"{EXPERTS}.{layer}.{expert}", passes))
    return parts


def list_expert_layers(config: Lfm2Config) -> list[int]:
    """Numbers of the layers that have experts."""
    return [n for n in range(config.num_hidden_layers) if config.is_moe_layer(n)]


def state_dtype(precision: Precision) -> str:
    """float32 holds what 16-bit integers stand for; float16 does not."""
    return "float32" if precision in _ROUNDED else "float16"


def plan(weights: Sequence[WeightSpec], precision: Precision) -> Mapping[str, TensorPlan]:
    """One scale a row on the NPU; table and head as the CPU's kernels read them."""
    found = dict(plan_in_groups(weights, precision, int4_group=0))
    for weight in weights:
        if weight.role in ("embedding", "head"):
            found[weight.name] = plan_tensor(weight, precision)
        elif found[weight.name].is_quantized:
            found[weight.name] = replace(found[weight.name], narrow_range=True)
    return found


def calibrate(wanted: Calibration) -> Ranges:
    """Between which numbers each activation lies, over the calibration text."""
    return measure_static(
        wanted,
        lambda steps: lower_layers(wanted.config, steps, ir.DataType.FLOAT),
        _calibrate_router,
        _calibrate_experts,
    )


def _calibrate_router(layer: int) -> tuple[Pass, ...]:
    return (clean_up, only_routers(ir.DataType.FLOAT, [layer]), lower_linear, *_LAST)


def _calibrate_experts(layer: int) -> tuple[Pass, ...]:
    return (clean_up, only_experts(layer, ir.DataType.FLOAT, project), *_LAST)


def note(precision: Precision) -> tuple[str, ...]:
    """What a user should know."""
    if precision not in _ROUNDED:
        return ("activations are float16",)
    return (f"{precision} of weights; activations are uint16 (int16 for keys and values)",)


def finish(written: Written) -> None:
    """Nothing is left to do: graphs and weights are what the runtime reads."""


QNN = Target(
    name="qnn",
    runtime="qnn",
    precisions=_PRECISIONS,
    make_parts=make_parts,
    finish=finish,
    opsets=(("", _OPSET), (MICROSOFT, 1)),
    ir_version=10,
    plan=plan,
    chunk=CHUNK,
    context_length=CONTEXT,
    state_dtype=state_dtype,
    channels_last=True,
    compiles=True,
    notes=note,
    calibrate=calibrate,
    calibrated=_ROUNDED,
    rounding=lambda precision: round_turned,
)
