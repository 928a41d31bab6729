"""The inputs and outputs of a graph of fixed shape, for an NPU.

`lfm2_deploy/static_graphs.py` says what they are. Picking the columns of a conv state is a
product with rows of zeros and a one: exact, and what an NPU does best.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.clean_up import leave_only
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.static_graphs import (
    COS,
    EMBEDS,
    ENDS,
    HIDDEN,
    HISTORY_MASK,
    LOGITS,
    SIN,
)


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
        # One for all inputs: several would give their nodes the same names.
        self.rewriter = Rewriter(self.draft, embedding)
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
        self.rewriter.finish(x)
        self._take_last()
        self._end()

    def _input(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Declare an input; what nodes use of it is float32."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(self.dtype))
        self.inputs.append(value)
        if self.dtype == ir.DataType.FLOAT:
            return value
        cast: ir.Value = self.rewriter.op("Cast", [value], to=ir.DataType.FLOAT)
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
    leave_only(draft, [start], [end])


def count_steps(draft: Draft) -> int:
    """S, from the inputs that the frame declared."""
    (embeds,) = [value for value in draft.graph.inputs if value.name == EMBEDS]
    assert embeds.shape is not None
    steps = embeds.shape[1]
    assert isinstance(steps, int)
    return steps
