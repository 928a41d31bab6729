"""The inputs and outputs of a graph of fixed shape, for an NPU.

`lfm2_deploy/static_graphs.py` says what they are. Picking the columns of a conv state is a
product with rows of zeros and a one: exact, and what an NPU does best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from exporters.draft import Draft, Rewriter, attribute, name_of
from exporters.passes.clean_up import remove_unused
from exporters.passes.ov.norm import rms_norm
from exporters.passes.weights import plain_weight
from exporters.weight_book import Slot
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.static_graphs import (
    COS,
    EMBEDS,
    ENDS,
    HIDDEN,
    HISTORY_MASK,
    LOGITS,
    MASKED,
    SIN,
)

_MASK = "mask"


def static_frame(steps: int, dtype: ir.DataType) -> Callable[[Draft], None]:
    """A pass that gives a draft the inputs above.

    Args:
        steps: S.
        dtype: of activations and states at the graph's edge.
    """
    return lambda draft: _Frame(draft, steps, dtype).apply()


class _Frame:
    def __init__(self, draft: Draft, steps: int, dtype: ir.DataType) -> None:
        self.draft, self.steps, self.dtype = draft, steps, dtype
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []

    def apply(self) -> None:
        config, steps, width = self.draft.config, self.steps, self.draft.config.conv_state_width
        (embedding,) = self.draft.find("Embedding")
        self.first = embedding
        x = self._input(EMBEDS, (1, steps, config.hidden_size))
        for name in (COS, SIN):
            self.draft.shared[name] = self._input(name, (1, steps, 1, config.head_dim // 2))
        self.draft.shared[HISTORY_MASK] = self._input(
            HISTORY_MASK, (1, 1, 1, self.draft.context_length)
        )
        if steps > 1:
            ends = self._input(ENDS, (1, width, steps + width))
            self.draft.shared[ENDS] = ends
        self._take_states()
        Rewriter(self.draft, embedding).finish(x)
        self._take_last()
        self._end()

    def _input(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Declare an input; what nodes use of it is float32."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(self.dtype))
        self.inputs.append(value)
        if self.dtype == ir.DataType.FLOAT:
            return value
        cast: ir.Value = Rewriter(self.draft, self.first).op("Cast", [value], to=ir.DataType.FLOAT)
        cast.name = f"{name}.wide"
        return cast

    def _output(self, value: ir.Value, name: str, shape: tuple[int, ...]) -> None:
        node = value.producer()
        assert node is not None
        if self.dtype == ir.DataType.FLOAT:
            out = ir.node("Identity", [value], name=f"{name}/Identity")
        else:
            out = ir.node("Cast", [value], {"to": self.dtype}, name=f"{name}/Cast")
        self.draft.graph.insert_after(node, out)
        (described,) = out.outputs
        described.name, described.type = name, ir.TensorType(self.dtype)
        described.shape = ir.Shape(shape)
        self.outputs.append(described)

    def _take_states(self) -> None:
        """Replace the state inputs; conv and attention nodes keep their place."""
        old = {value.name: value for value in self.draft.graph.inputs}
        for spec in static_states(self.draft, self.dtype):
            shape = spec.concrete_shape(1, self.draft.context_length)
            before = old[spec.input]
            before.name = f"{spec.input}.replaced"
            before.replace_all_uses_with(self._input(spec.input, shape))

    def _take_last(self) -> None:
        # The host takes the rows it wants: all come out, of a few kilobytes each.
        (node,) = self.draft.find("TakeLast")
        assert node.inputs[0] is not None
        Rewriter(self.draft, node).finish(node.inputs[0])

    def _end(self) -> None:
        """Cut the head off; name the new outputs."""
        config, steps = self.draft.config, self.steps
        graph = self.draft.graph
        (head,) = [n for n in self.draft.find("Linear") if n.outputs[0].is_graph_output()]
        hidden = head.inputs[0]
        assert hidden is not None
        old = {value.name: value for value in graph.outputs}
        graph.outputs.clear()
        graph.remove(head, safe=True)
        self._output(hidden, HIDDEN, (1, steps, config.hidden_size))
        for spec in static_states(self.draft, self.dtype):
            value = old[spec.output]
            value.name = f"{spec.output}.wide"
            rows = steps if spec.kind != "conv" else 0
            self._output(value, spec.output, spec.concrete_shape(1, rows))
        graph.outputs.extend(self.outputs)
        graph.inputs.clear()
        graph.inputs.extend(self.inputs)


def static_states(draft: Draft, dtype: ir.DataType) -> tuple[StateSpec, ...]:
    """The states as static graphs have them."""
    return list_states(draft.config, dtype.numpy().name, channels_last=True)


def only_embedding(dtype: ir.DataType) -> Callable[[Draft], None]:
    """A pass that leaves the embedding: `input_ids` [1, n] -> `inputs_embeds` [1, n, H]."""

    def cut(draft: Draft) -> None:
        (node,) = draft.find("Embedding")
        ids = node.inputs[0]
        assert ids is not None
        out = ir.node("Cast", [node.outputs[0]], {"to": dtype}, name="embeds/Cast")
        draft.graph.insert_after(node, out)
        _leave(draft, ids, out.outputs[0], EMBEDS, dtype, draft.config.hidden_size)

    return cut


def only_head(dtype: ir.DataType) -> Callable[[Draft], None]:
    """A pass that leaves the head: `hidden` [1, n, H] -> `logits` float32 [1, n, V]."""

    def cut(draft: Draft) -> None:
        (head,) = [n for n in draft.find("Linear") if n.outputs[0].is_graph_output()]
        shape = (1, "sequence_length", draft.config.hidden_size)
        hidden = ir.Value(name=HIDDEN, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        wide = ir.node("Cast", [hidden], {"to": ir.DataType.FLOAT}, name="hidden/Cast")
        draft.graph.insert_before(head, wide)
        head.replace_input_with(0, wide.outputs[0])
        logits = head.outputs[0]
        _leave(draft, hidden, logits, LOGITS, ir.DataType.FLOAT, draft.config.vocab_size)

    return cut


def _leave(
    draft: Draft, start: ir.Value, end: ir.Value, name: str, dtype: ir.DataType, width: int
) -> None:
    end.name, end.type = name, ir.TensorType(dtype)
    end.shape = ir.Shape((1, "sequence_length", width))
    start.shape = ir.Shape((1, "sequence_length", *(start.shape or ())[2:]))
    graph = draft.graph
    graph.outputs.clear()
    graph.outputs.append(end)
    graph.inputs.clear()
    graph.inputs.append(start)
    remove_unused(draft)


def lower_conv(draft: Draft) -> None:
    """lfm2::CausalConv -> one product for each tap, over shifted columns."""
    width = draft.config.conv_state_width
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        columns = rewriter.op("Concat", [past, x], axis=1)
        steps = _steps(draft)
        terms = []
        for tap, kernel in enumerate(conv_taps(draft, name_of(weight))):
            part = x if tap == width else _slice(rewriter, columns, tap, tap + steps, 1)
            terms.append(rewriter.op("Mul", [part, kernel]))
        y = terms[0]
        for term in terms[1:]:
            y = rewriter.op("Add", [y, term])
        if ENDS in draft.shared:
            present = rewriter.op("MatMul", [draft.shared[ENDS], columns])
        else:
            present = _slice(rewriter, columns, 1, 1 + width, 1)
        rewriter.finish(y, present)


def conv_taps(draft: Draft, name: str) -> list[ir.Value]:
    """The kernel, one float32 [H] for each tap, the oldest first."""
    hidden, width = draft.config.hidden_size, draft.config.conv_L_cache
    names = [f"{name}.tap{tap}" for tap in range(width)]
    is_new = names[0] not in draft.book.declared
    values = [draft.book.declare(draft.graph, tap, (hidden,)) for tap in names]
    if is_new:
        draft.book.fill([name], lambda w: [w[:, 0, tap] for tap in range(width)], *map(Slot, names))
    return values


def lower_attention(draft: Draft) -> None:
    """lfm2::CachedAttention -> two products and a softmax over history and new rows.

    The query heads that share a key head are rows of one product, so keys are not repeated.
    """
    for node in draft.find("CachedAttention"):
        query, key, value, q_norm, k_norm, past_key, past_value = node.inputs[:7]
        rewriter, epsilon = Rewriter(draft, node), attribute(node, "epsilon")
        config, steps = draft.config, _steps(draft)
        kv, size = config.num_key_value_heads, config.head_dim
        share = config.num_attention_heads // kv
        q = _rotate(rewriter, _norm_heads(rewriter, query, name_of(q_norm), epsilon, size**-0.5))
        k = _rotate(rewriter, _norm_heads(rewriter, key, name_of(k_norm), epsilon, 1.0))
        q = rewriter.op("Reshape", [q, rewriter.ints(1, steps, kv, share, size)])
        q = rewriter.op("Transpose", [q], perm=[0, 2, 3, 1, 4])
        q = rewriter.op("Reshape", [q, rewriter.ints(1, kv, share * steps, size)])
        k = rewriter.op("Transpose", [k], perm=[0, 2, 1, 3])
        v = rewriter.op("Reshape", [value, rewriter.ints(1, steps, kv, size)])
        v = rewriter.op("Transpose", [v], perm=[0, 2, 1, 3])
        y = _attend(rewriter, q, (past_key, past_value), (k, v), steps, share)
        y = rewriter.op("Reshape", [y, rewriter.ints(1, kv, share, steps, size)])
        y = rewriter.op("Transpose", [y], perm=[0, 3, 1, 2, 4])
        y = rewriter.op("Reshape", [y, rewriter.ints(1, steps, kv * share * size)])
        rewriter.finish(y, k, v)


def _attend(
    rewriter: Rewriter,
    q: ir.Value,
    past: Sequence[ir.Value | None],
    new: Sequence[ir.Value],
    steps: int,
    share: int,
) -> ir.Value:
    """Attention over the history joined with the new rows.

    Two products instead of a joined one would save the copy, but Intel's compiler (8.4) fails
    on their softmax ("DecomposeAttention Pass failed"), and with a softmax spelled out it
    estimates 6 % more for one token and 58 % more for 128.
    """
    op = rewriter.op
    key, value = (op("Concat", pair, axis=2) for pair in zip(past, new, strict=True))
    scores = op("MatMul", [q, op("Transpose", [key], perm=[0, 1, 3, 2])])
    scores = op("Softmax", [op("Add", [scores, _mask(rewriter, steps, share)])], axis=-1)
    y: ir.Value = op("MatMul", [scores, value])
    return y


def _mask(rewriter: Rewriter, steps: int, share: int) -> ir.Value:
    """[1, 1, share*S or 1, T+S], the same for all layers."""
    draft, op = rewriter.draft, rewriter.op
    if _MASK not in draft.shared:
        history = draft.shared[HISTORY_MASK]
        if steps > 1:
            size = (1, 1, share * steps, draft.context_length)
            history = op("Expand", [history, rewriter.ints(*size)])
        draft.shared[_MASK] = op("Concat", [history, _causal(rewriter, steps, share)], axis=-1)
    return draft.shared[_MASK]


def _causal(rewriter: Rewriter, steps: int, share: int) -> ir.Value:
    """[1, 1, share*S or 1, S]: each token sees itself and those before it."""
    draft = rewriter.draft
    mask = np.triu(np.full((1, 1, steps, steps), MASKED, np.float32), 1)
    causal = draft.book.constant(draft.graph, "causal", mask)
    # A single token's heads all see the same. Repeated in the graph: a file need not hold it.
    repeats = share if steps > 1 else 1
    return causal if repeats == 1 else rewriter.op("Concat", [causal] * repeats, axis=2)


def _norm_heads(
    rewriter: Rewriter, x: ir.Value | None, weight: str, epsilon: float, scale: float
) -> ir.Value:
    """[1, S, n*D] -> [1, S, n, D], each head normed; `scale` goes into the norm's weight."""
    draft = rewriter.draft
    heads = rewriter.op("Reshape", [x, rewriter.ints(1, _steps(draft), -1, draft.config.head_dim)])
    if scale == 1.0:
        gamma = plain_weight(draft, weight)
    else:
        name = f"{weight}.scaled"
        is_new = name not in draft.book.declared
        gamma = draft.book.declare(draft.graph, name, (draft.config.head_dim,))
        if is_new:
            draft.book.fill([weight], lambda w: [w * np.float32(scale)], Slot(name))
    return rms_norm(rewriter, heads, gamma, epsilon)


def _rotate(rewriter: Rewriter, x: ir.Value) -> ir.Value:
    """Rotate-half RoPE of [1, S, n, D], half by half.

    The compiler knows x * cos + swapped * sin, makes one operator of it, and then fails for
    platform 3720 where attention follows ("Tiling dim must be first dimension greater than
    1", compiler 8.4, 128 tokens over 1024). Spelled out so, it takes it; time is the same.
    """
    op, half = rewriter.op, rewriter.draft.config.head_dim // 2
    cos, sin = (rewriter.draft.shared[name] for name in (COS, SIN))
    low, high = op("Split", [x, rewriter.ints(half, half)], outputs=2, axis=-1)
    turned_low = op("Sub", [op("Mul", [low, cos]), op("Mul", [high, sin])])
    turned_high = op("Add", [op("Mul", [high, cos]), op("Mul", [low, sin])])
    y: ir.Value = op("Concat", [turned_low, turned_high], axis=-1)
    return y


def _slice(rewriter: Rewriter, x: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    ints = rewriter.ints
    y: ir.Value = rewriter.op("Slice", [x, ints(start), ints(end), ints(axis)])
    return y


def _steps(draft: Draft) -> int:
    """S, from the inputs that the frame declared."""
    (embeds,) = [value for value in draft.graph.inputs if value.name == EMBEDS]
    assert embeds.shape is not None
    steps = embeds.shape[1]
    assert isinstance(steps, int)
    return steps
