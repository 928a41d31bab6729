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
"""

from __future__ import annotations

from typing import Any, NamedTuple

MODEL, PREFILL, DECODE = "model", "prefill", "decode"

INPUT_IDS, POSITIONS, LOGIT_ROWS, LOGITS = "input_ids", "position_ids", "logit_rows", "logits"
SEQLENS, TOTAL, CONV_ENDS = "seqlens_k", "total_sequence_length", "conv_ends"

# Dimensions: S, K and T.
STEPS, LOGIT_COUNT, ROOM = "sequence_length", "logit_count", "capacity"

BOUND_WEIGHTS = "lfm2_deploy.bound_weights"


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


def parse_bound_weights(raw: dict[str, Any]) -> dict[str, BoundWeight]:
    """As read from JSON."""
    return {
        name: BoundWeight(int(offset), str(dtype), tuple(map(int, shape)))
        for name, (offset, dtype, shape) in raw.items()
    }
