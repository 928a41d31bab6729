"""The inputs and outputs of a graph of any length, as optimum-intel's graphs have them.

    input_ids, attention_mask, position_ids  int64 [B, S], [B, T], [B, S]
    beam_idx                                 int32 [B]: which row each row continues

and the states, which `openvino_ir.py` turns into variables. Out comes `logits` [B, S, V].
Readers may pad at the left (NPUW does, to fill its chunks), so padding is told by the mask. So are
positions: a token's is how many real ones came before it. Nothing reads `position_ids`. It is there
because NPUW looks it up (OpenVINO 2026.4.1, "unordered_map::at" without it), and nothing may depend
on it because optimum-intel 2.2.0 does not feed it to LFM2 models.

A row of S columns of which p are padding continues its conv state right before its first
real token: the columns of the past take the places p and p+1 of the window. So padding
never reaches a convolution, nor a state: where a whole chunk is padding, the state stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.ov.norm import constant
from lfm2_deploy.rotary import compute_frequencies
from lfm2_deploy.states import BATCH, StateSpec, list_states

BEAM, POSITIONS = "beam_idx", "position_ids"
BIAS, WINDOW, COS, SIN, _BEAM = "attention_bias", "window_index", "cos", "sin", "beam"
# The lowest float16. An infinity would make rows of padding, which see nothing, not numbers.
_MASKED = -65504.0
_TO_THE_END = np.iinfo(np.int64).max


def stateful_frame(draft: Draft) -> None:
    """Give a draft the inputs above, and compute once what all layers share."""
    (lengths,) = draft.find("Lengths")
    ids, mask = lengths.inputs
    assert ids is not None
    assert mask is not None
    positions = _tensor(POSITIONS, (BATCH, "sequence_length"), ir.DataType.INT64)
    beam = _tensor(BEAM, (BATCH,), ir.DataType.INT32)
    rewriter, shared = Rewriter(draft, lengths), draft.shared
    shared[_BEAM] = beam
    count = rewriter.op("Shape", [ids], start=1, end=2)
    _share_window(rewriter, mask, count)
    _share_bias(rewriter, mask, count)
    _share_rotation(rewriter, mask, count)
    (take,) = draft.find("TakeLast")
    assert take.inputs[0] is not None
    Rewriter(draft, take).finish(take.inputs[0])
    inputs = draft.graph.inputs
    states = [v for v in inputs if v.name not in ("input_ids", "attention_mask", "logits_to_keep")]
    inputs.clear()
    inputs.extend([ids, mask, positions, beam, *states])
    # One position after another, not the last alone.
    draft.graph.outputs[0].shape = ir.Shape((BATCH, "sequence_length", draft.config.vocab_size))


def _tensor(name: str, shape: tuple[int | str, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _share_window(rewriter: Rewriter, mask: ir.Value, count: ir.Value) -> None:
    """int64 [B, L-1+S, 1]: from which column of (past, new) each column of the window comes."""
    width, op, ints = rewriter.draft.config.conv_state_width, rewriter.op, rewriter.ints
    own = op("Slice", [mask, op("Neg", [count]), ints(_TO_THE_END), ints(1)])
    real = op("ReduceSum", [own, ints(1)], keepdims=1)
    padding = op("Sub", [count, real])
    end = op("Squeeze", [op("Add", [count, ints(width)]), ints(0)])
    column = op("Range", [_scalar(rewriter, 0), end, _scalar(rewriter, 1)])
    shifted = op("Max", [op("Sub", [column, padding]), ints(0)])
    first = op("Add", [padding, ints(width)])
    index = op("Where", [op("GreaterOrEqual", [column, first]), column, shifted])
    rewriter.draft.shared[WINDOW] = op("Unsqueeze", [index, ints(2)])


def _share_bias(rewriter: Rewriter, mask: ir.Value, count: ir.Value) -> None:
    """float32 [B, 1, S, T]: 0 where a token sees another, and the lowest number elsewhere."""
    op, ints = rewriter.op, rewriter.ints
    total = op("Shape", [mask], start=1, end=2)
    one = _scalar(rewriter, 1)
    key = op("Range", [_scalar(rewriter, 0), op("Squeeze", [total, ints(0)]), one])
    query = op("Range", [
        op("Squeeze", [op("Sub", [total, count]), ints(0)]),
        op("Squeeze", [total, ints(0)]), one,
    ])  # fmt: skip
    before = op("LessOrEqual", [key, op("Unsqueeze", [query, ints(1)])])
    real = op("Cast", [op("Unsqueeze", [mask, ints(1, 2)])], to=ir.DataType.BOOL)
    visible = op("And", [real, before])
    rewriter.draft.shared[BIAS] = op(
        "Where", [visible, constant(rewriter, 0.0), constant(rewriter, _MASKED)]
    )


def _share_rotation(rewriter: Rewriter, mask: ir.Value, count: ir.Value) -> None:
    """Cosines and sines, float32 [B, 1, S, D]; angles are float32 as in transformers."""
    draft, op = rewriter.draft, rewriter.op
    positions = _find_positions(rewriter, mask, count)
    radians = compute_frequencies(draft.config.rope_theta, draft.config.head_dim)
    frequencies = draft.book.constant(draft.graph, "rope.frequencies", radians.reshape(1, 1, -1))
    wide = op("Cast", [positions], to=ir.DataType.FLOAT)
    angles = op("Mul", [op("Unsqueeze", [wide, rewriter.ints(2)]), frequencies])
    angles = op("Concat", [angles, angles], axis=-1)
    for name, function in ((COS, "Cos"), (SIN, "Sin")):
        turned = op("Unsqueeze", [op(function, [angles]), rewriter.ints(1)])
        draft.shared[name] = turned


def _find_positions(rewriter: Rewriter, mask: ir.Value, count: ir.Value) -> ir.Value:
    """int64 [B, S]: how many real tokens came before each; 0 for padding at a row's beginning."""
    op, ints = rewriter.op, rewriter.ints
    before = op("Sub", [op("CumSum", [mask, _scalar(rewriter, 1)]), ints(1)])
    from_zero = op("Max", [before, ints(0)])
    own: ir.Value = op("Slice", [from_zero, op("Neg", [count]), ints(_TO_THE_END), ints(1)])
    return own


def continue_state(rewriter: Rewriter, past: ir.Value | None) -> ir.Value:
    """The state of the row that each row continues."""
    chosen: ir.Value = rewriter.op("Gather", [past, rewriter.draft.shared[_BEAM]], axis=0)
    return chosen


def _scalar(rewriter: Rewriter, value: int) -> ir.Value:
    draft = rewriter.draft
    return draft.book.constant(draft.graph, f"int.{value}", np.array(value, np.int64))


def genai_names(states: Sequence[StateSpec]) -> list[tuple[str, str]]:
    """How openvino-genai and NPUW want states' inputs and outputs to be called.

    Numbers count the states of a kind, and are not layers: optimum-intel takes them for places in
    a list.
    """
    counts: Counter[str] = Counter()
    names = []
    for spec in states:
        end = f"{spec.kind}.{counts[spec.kind]}"
        counts[spec.kind] += 1
        names.append((f"cache_params.past.{end}", f"cache_params.present.{end}"))
    return names


def rename_states(draft: Draft) -> None:
    """Give the states those names."""
    names, states = {}, list_states(draft.config)
    for spec, (before, after) in zip(states, genai_names(states), strict=True):
        names[spec.input], names[spec.output] = before, after
    for value in (*draft.graph.inputs, *draft.graph.outputs):
        value.name = names.get(value.name or "", value.name)
