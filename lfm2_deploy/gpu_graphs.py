"""Graphs for GPUs: what exporter and runtime call their inputs and outputs.

One call appends S tokens of one row. Whatever is arithmetic of lengths is done by the host, for
two reasons: a GPU's providers leave integers to the CPU, which splits a graph in pieces, and
sizes that the GPU computes must be waited for.

    input_ids              int64 [1, S]
    position_ids           int64 [1, S]    where RoPE is an operator of its own
    seqlens_k              int32 [1]       tokens after this call, less one, as GroupQueryAttention
                                           wants them
    total_sequence_length  int32 [1]       tokens after this call, padding included; on the CPU
    logit_rows             int64 [K]       which of the S tokens' logits are wanted
    conv_ends              int64 [L-1]     where a row may be padded at its right: the columns of
                                           [past, new] that a conv state continues with

and the states: conv states [1, H, L-1], and key/value buffers [1, KV, T, D], which a call reads
and writes in place: input and output must be bound to the same memory. Out come `logits`, always
float32, [1, K, V], and the states.

There is one graph, `model`; or two, `prefill` for many tokens and `decode` for one. Weights are
inputs then, so that any number of sessions read the same memory; `BOUND_WEIGHTS` in a graph's
metadata says where in the weights file they lie, as JSON: name -> [offset, dtype, shape]. Such
graphs are meant to be loaded with fixed shapes, and their dimensions have names for that.

Of a mixture of experts `prefill` computes all experts for all tokens. Long prompts are cheaper in
parts, with the host in between to send each token to its experts:

    prefill.first   input_ids ... -> x, residual [1, S, H], scores, probabilities float32 [1, S, E]
    prefill.conv, prefill.full_attention
                    hidden [1, S, H] ... -> as above: from one layer's experts to the next's
    prefill.last    hidden, logit_rows -> logits
    prefill.experts PIECES pieces of C tokens, each for one expert:
                    x       [1, S, H]
                    rows    int64 [PIECES * C]    which token stands in which row
                    weights float32 [PIECES * C]  how much the expert's answer to it weighs
                    experts int64 [PIECES]        which expert takes which piece
                    -> answers [PIECES * C, H]
    prefill.sum     answers.0 ...                 of SUMMED such calls
                    places  int64 [S, K]          in which of all rows each token's answers are;
                                                  one past the last if in none
                    residual [1, S, H]            what they are added to, in float32
                    -> hidden [1, S, H]

Layers of one kind compute alike, so they share a graph: in the names of its inputs and outputs
EVERY_LAYER stands for the layer's number, and its metadata tells where the weights of all these
layers lie.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any, NamedTuple

from lfm2_deploy.errors import BundleError

MODEL, PREFILL, DECODE = "model", "prefill", "decode"
FIRST, LAST = "prefill.first", "prefill.last"
EXPERTS, SUM = "prefill.experts", "prefill.sum"

INPUT_IDS, POSITIONS, LOGIT_ROWS, LOGITS = "input_ids", "position_ids", "logit_rows", "logits"
SEQLENS, TOTAL, CONV_ENDS = "seqlens_k", "total_sequence_length", "conv_ends"

X, RESIDUAL, HIDDEN = "x", "residual", "hidden"
SCORES, PROBABILITIES = "scores", "probabilities"
ROWS, CHOSEN, PLACES, WEIGHTS = "rows", "experts", "places", "weights"
ANSWERS = "answers"

# Dimensions: S, K (of logits), T, and rows of all pieces.
STEPS, LOGIT_COUNT, ROOM = "sequence_length", "logit_count", "capacity"
ROW_COUNT = "row_count"

# Pieces of one call: each expert's weights are copied before they are multiplied, which takes
# memory for as many experts (in int4 46 MB of LFM2-8B-A1B), and pieces without tokens, which
# fill the last call, cost what others do.
PIECES = 8
# Calls whose answers are added up at once; what it takes to add up grows with the prompt.
SUMMED = 8
EVERY_LAYER = "*"

BOUND_WEIGHTS = "lfm2_deploy.bound_weights"
# Bytes of a number.
_DTYPES = {"float32": 4, "float16": 2, "uint8": 1}
_REMEDY = "the bundle is damaged; export the model again"


def name_segment(kind: str) -> str:
    """The part that runs from one layer's experts to those of a layer of this kind."""
    return f"{PREFILL}.{kind}"


def name_answers(call: int) -> str:
    """Answers of one of the calls that are added up."""
    return f"{ANSWERS}.{call}"


def fill_in(name: str, layer: int) -> str:
    """What a name with EVERY_LAYER means in one layer."""
    return name.replace(EVERY_LAYER, str(layer))


class BoundWeight(NamedTuple):
    """Where an input's values lie.

    Args:
        offset: in the weights file, in bytes.
        dtype: numpy name.
        shape: dimensions.
    """

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """Where its bytes end; Python's integers do not overflow."""
        return self.offset + _DTYPES[self.dtype] * prod(self.shape)


def parse_bound_weights(text: str, size_bytes: int) -> dict[str, BoundWeight]:
    """What a graph's metadata says of its bound weights; nothing of it is believed.

    Args:
        text: JSON, as found.
        size_bytes: of the weights file.

    Raises:
        BundleError: it is something else, or a weight lies outside the file.
    """
    try:
        raw = json.loads(text)
        found = {str(name): _parse_place(place) for name, place in raw.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"the list of bound weights cannot be read ({error}): {_REMEDY}"
        ) from error
    for name, place in found.items():
        if place.end > size_bytes:
            raise BundleError(
                f"{name} ends at byte {place.end} of a weights file of {size_bytes}: {_REMEDY}"
            )
    return found


def _parse_place(place: Any) -> BoundWeight:
    offset, dtype, shape = place
    whole = all(type(number) is int for number in (offset, *shape))  # not True
    if dtype not in _DTYPES or not whole or offset < 0 or min(shape, default=1) < 1:
        raise ValueError(f"{place!r:.80} is no offset, dtype and shape")
    return BoundWeight(offset, dtype, tuple(shape))
