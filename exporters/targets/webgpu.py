"""WebGPU, through ONNX Runtime: any GPU with Vulkan, Direct3D 12 or Metal; fused operators."""

from __future__ import annotations

from exporters.draft import MICROSOFT
from exporters.passes.gpu.attention import lower_attention
from exporters.passes.gpu.conv import lower_fused_conv
from exporters.passes.gpu.embedding import lower_embedding
from exporters.passes.gpu.fused_experts import lower_fused_experts
from exporters.passes.gpu.linear import lower_linear, multiply_packed
from exporters.quantize.plan import PRECISIONS
from exporters.targets.gpu import FIRST, LAST, compute_dtype, finish, rounding
from exporters.targets.target import Part, Target
from exporters.trace import OPSET

PASSES = (
    *FIRST,
    lower_embedding,
    lower_fused_conv,
    lower_attention,
    lower_fused_experts,
    lower_linear(multiply_packed),
    *LAST,
)

WEBGPU = Target(
    name="webgpu",
    runtime="webgpu",
    precisions=PRECISIONS,
    make_parts=lambda wanted: (Part("model", PASSES),),
    finish=finish,
    opsets=(("", OPSET), (MICROSOFT, 1)),
    ir_version=10,
    state_dtype=compute_dtype,
    compute_dtype=compute_dtype,
    groups=(32, 64, 128),
    expert_groups=(32, 64, 128),
    scale_bytes=2,
    rounding=rounding,
)
