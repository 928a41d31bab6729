"""A graph that takes embeddings instead of token ids, and the look-up as a graph of its own.

    model   inputs_embeds float32 [B, S, H], attention_mask int64 [B, T], states -> logits, states
    embed   input_ids int64 [B, S] -> inputs_embeds float32 [B, S, H]

The names are transformers', transformers.js' and onnxruntime-genai's. Without ids nothing tells
padding, so all S positions of all rows are real: a row's past is the ones of its mask less S.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.clean_up import leave_only
from exporters.passes.lower_lengths import share_lengths
from exporters.trace import SEQUENCE
from lfm2_deploy.states import BATCH
from lfm2_deploy.static_graphs import EMBEDS


def take_embeds(draft: Draft) -> None:
    """Replace the ids by embeddings, and lower what was counted from ids."""
    (lengths,), (embedding,) = draft.find("Lengths"), draft.find("Embedding")
    ids, mask = lengths.inputs
    assert mask is not None
    embeds = _describe(ir.Value(), draft)
    rewriter = Rewriter(draft, lengths)
    batch = rewriter.op("Shape", [embeds], start=0, end=1)
    steps = rewriter.op("Shape", [embeds], start=1, end=2)
    share_lengths(rewriter, mask, rewriter.op("Expand", [steps, batch]))
    Rewriter(draft, embedding).finish(embeds)
    inputs = [embeds if value is ids else value for value in draft.graph.inputs]
    draft.graph.inputs.clear()
    draft.graph.inputs.extend(inputs)


def only_embedding(draft: Draft) -> None:
    """Leave the embedding alone."""
    (node,) = draft.find("Embedding")
    ids = node.inputs[0]
    assert ids is not None
    leave_only(draft, [ids], [_describe(node.outputs[0], draft)])


def _describe(value: ir.Value, draft: Draft) -> ir.Value:
    value.name, value.type = EMBEDS, ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape((BATCH, SEQUENCE, draft.config.hidden_size))
    return value
