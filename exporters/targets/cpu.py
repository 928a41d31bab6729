"""ONNX Runtime's CPU provider: every LFM2 primitive has a fused kernel there."""

from __future__ import annotations

from exporters.draft import MICROSOFT
from exporters.genai_config import write_genai_config
from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.lower_attention import lower_attention
from exporters.passes.lower_conv import lower_conv
from exporters.passes.lower_embedding import lower_embedding
from exporters.passes.lower_experts import lower_experts
from exporters.passes.lower_lengths import lower_lengths, lower_take_last
from exporters.passes.lower_linear import lower_linear
from exporters.passes.lower_norm import lower_norm
from exporters.passes.lower_parameters import lower_parameters
from exporters.quantize.plan import PRECISIONS
from exporters.readers.reader import GENAI, GENAI_LEGACY, TRANSFORMERSJS
from exporters.targets.target import Part, Target
from exporters.trace import OPSET

PASSES = (
    clean_up,
    lower_lengths,
    lower_embedding,
    lower_norm,
    lower_conv,
    lower_attention,
    lower_experts,
    lower_linear,
    lower_take_last,
    lower_parameters,
    share_common,
    # lower_conv leaves the kernel's own state unread.
    remove_unused,
)

CPU = Target(
    name="cpu",
    runtime="ort",
    precisions=PRECISIONS,
    make_parts=lambda wanted: (Part("model", PASSES),),
    finish=write_genai_config,
    opsets=(("", OPSET), (MICROSOFT, 1)),
    ir_version=10,
    groups=(32, 64, 128, 256),
    expert_groups=(32, 64, 128),
    readers=(GENAI, TRANSFORMERSJS, GENAI_LEGACY),
)
