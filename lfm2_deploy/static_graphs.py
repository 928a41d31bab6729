"""Graphs of fixed shape: what exporter and runtime call their inputs and outputs.

One call takes S tokens of one row; T positions of history lie in buffers that the host
owns. What the host can do for nothing is not in the graph:

    inputs_embeds   [1, S, H]      rows of the embedding table; padding holds zeros
    rope.cos, .sin  [1, S, 1, D/2] of each token's position
    history_mask    [1, 1, 1, T]   0 where a token lies, else MASKED
    row_mask        [1, 1, 1, T+S] or the same followed by S zeros, for the new tokens
    ends            [1, L-1, S+L-1]  where S > 1: picks the columns a conv state continues with
    picks           int32 [L-1]      or, for an NPU that gathers, their numbers

and the states: conv states [1, L-1, H], channels last, and key/value history [1, KV, T, D].
Out come `hidden` [1, S, H] after the final norm, new conv states, and of keys and values
only the S new rows [1, KV, S, D], which the host writes into its buffer. Tokens stand at the
left of a chunk and padding at its right, so causality alone keeps padding out of all
that is read: a mask for it is not needed, and no state ever holds any.

A mixture of experts is cut at each of its expert layers. A file then holds several graphs
that have nothing in common but constants (a runtime takes them apart by their names):

    segments    ... -> moe.N.residual, moe.N.x [1, S, H]; then moe.N.hidden [1, S, H] -> ...
    routers     moe.N.x -> moe.N.scores, moe.N.probabilities, float32 [1, S, E]
    experts     moe.N.E.x [1, EXPERT_ROWS, H] -> moe.N.E.y: one small graph an expert
    or, whole   moe.N.x [1, n, H] -> moe.N.y: all experts of a layer, routed in the graph
"""

from __future__ import annotations

# Meteor Lake and Arrow Lake, Lunar Lake, Panther Lake.
NPU_PLATFORMS = ("3720", "4000", "5010")

EMBED, PREFILL, DECODE, HEAD = "embed", "prefill", "decode", "head"
ROUTERS, EXPERTS = "routers", "experts"

INPUT_IDS, EMBEDS, HIDDEN, LOGITS = "input_ids", "inputs_embeds", "hidden", "logits"
COS, SIN, HISTORY_MASK = "rope.cos", "rope.sin", "history_mask"
ROW_MASK, ENDS, PICKS = "row_mask", "ends", "picks"
# The lowest float16: masked scores vanish in softmax, and nothing becomes infinite.
MASKED = -65504.0

# Tokens that one call of an expert takes. For an NPU 16 cost what one does (320 and 329 us
# for an expert of LFM2-24B-A2B in int4), so one shape serves prompts and single tokens.
EXPERT_ROWS = 16


def name_residual(layer: int) -> str:
    """What is added to the experts' sum."""
    return f"moe.{layer}.residual"


def name_expert_input(layer: int, expert: int | None = None) -> str:
    """Normed hidden states that go to a layer's experts, or to one."""
    return f"moe.{layer}.x" if expert is None else f"moe.{layer}.{expert}.x"


def name_expert_output(layer: int, expert: int | None = None) -> str:
    """What a layer's experts give together, or one alone."""
    return f"moe.{layer}.y" if expert is None else f"moe.{layer}.{expert}.y"


def name_hidden(layer: int) -> str:
    """Residual and experts' sum: with this the next segment begins."""
    return f"moe.{layer}.hidden"


def name_scores(layer: int) -> str:
    """What chooses experts."""
    return f"moe.{layer}.scores"


def name_probabilities(layer: int) -> str:
    """What weighs the chosen."""
    return f"moe.{layer}.probabilities"
