"""ONNX Runtime's CPU provider: every LFM2 primitive has a fused kernel there."""

from __future__ import annotations

from exporters.draft import MICROSOFT
from exporters.genai_config import write_genai_config
from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.embeds_frame import only_embedding, take_embeds
from exporters.passes.lower_attention import lower_attention
from exporters.passes.lower_conv import lower_conv
from exporters.passes.lower_embedding import lower_embedding
from exporters.passes.lower_experts import lower_experts
from exporters.passes.lower_lengths import lower_lengths, lower_take_last
from exporters.passes.lower_linear import lower_linear
from exporters.passes.lower_norm import lower_norm
from exporters.passes.lower_parameters import lower_parameters
from exporters.quantize.plan import PRECISIONS
from exporters.targets.target import Part, Target, Wanted
from exporters.trace import OPSET
from lfm2_deploy.manifest import EMBED_FILE, GENAI, GENAI_LEGACY, TRANSFORMERSJS
from lfm2_deploy.static_graphs import EMBED

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

# Without ids: the look-up is a graph of its own over the same bytes.
EMBEDS_PASSES = tuple(
    take_embeds if rewrite is lower_lengths else rewrite
    for rewrite in PASSES
    if rewrite is not lower_embedding
)
LOOK_UP_PASSES = (clean_up, only_embedding, lower_embedding, share_common, remove_unused)


def make_parts(wanted: Wanted) -> tuple[Part, ...]:
    """The graphs of a bundle: one, or two where embeddings come in."""
    if not wanted.inputs_embeds:
        return (Part("model", PASSES),)
    return (Part("model", EMBEDS_PASSES), Part(EMBED, LOOK_UP_PASSES, EMBED_FILE))


CPU = Target(
    name="cpu",
    runtime="ort",
    precisions=PRECISIONS,
    make_parts=make_parts,
    finish=write_genai_config,
    opsets=(("", OPSET), (MICROSOFT, 1)),
    ir_version=10,
    groups=(32, 64, 128, 256),
    expert_groups=(32, 64, 128),
    embeds="asked",
    readers=(GENAI, TRANSFORMERSJS, GENAI_LEGACY),
)
