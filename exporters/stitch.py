"""Traced blocks x layers -> one graph with embedding, head and named states.

Graph inputs: `input_ids` int64 [B, S], right-padded with -1; `attention_mask` int64
[B, T], a 1 for each token a row holds after this call; `logits_to_keep` int64 [1],
which may be left out and is 1 then; the states. Outputs: `logits` float32 [B, K, V]
of each row's last K tokens, and the new states.

`logits` is declared as what a call without `logits_to_keep` gives, one position:
onnxruntime-genai 0.18 takes a graph for last-position-only by that 1 (IsPruned in its
model.cpp), and would otherwise allocate a position for each token.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporters.draft import SEMANTIC
from exporters.trace import OPSET, SEQUENCE
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.model.decoder import checkpoint_name
from lfm2_deploy.states import BATCH, StateSpec, list_states
from lfm2_deploy.weights import EMBEDDING, FINAL_NORM, HEAD

INPUT_IDS, ATTENTION_MASK, LOGITS = "input_ids", "attention_mask", "logits"
LOGITS_TO_KEEP = "logits_to_keep"

BlockTracer = Callable[[Lfm2Config, int], ir.Graph]


def stitch(config: Lfm2Config, trace: BlockTracer) -> ir.Graph:
    """Build the whole model's graph, its weights undeclared.

    Args:
        config: the model.
        trace: `trace.trace_layer`, called once for each kind of layer.

    Returns:
        a graph in which weights are initializers under canonical names, without data.
    """
    return _Stitcher(config).build(trace)


class _Stitcher:
    def __init__(self, config: Lfm2Config) -> None:
        self.config = config
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}
        self.states = list_states(config)
        self.state_inputs = {s.input: _tensor(s.input, s.shape) for s in self.states}
        self.state_outputs: dict[str, ir.Value] = {}

    def build(self, trace: BlockTracer) -> ir.Graph:
        ids = _tensor(INPUT_IDS, (BATCH, SEQUENCE), ir.DataType.INT64)
        mask = _tensor(ATTENTION_MASK, (BATCH, "total_sequence_length"), ir.DataType.INT64)
        keep = _tensor(LOGITS_TO_KEEP, (1,), ir.DataType.INT64)
        past, new = self._semantic("Lengths", "lengths", ids, mask, outputs=2)
        (x,) = self._semantic("Embedding", "embed", ids, self._weight(EMBEDDING))
        blocks: dict[tuple[str, bool], ir.Graph] = {}
        for layer, kind in enumerate(self.config.layer_types):
            key = (kind, self.config.is_moe_layer(layer))
            if key not in blocks:
                blocks[key] = trace(self.config, layer)
            x = self._instantiate(blocks[key], layer, x, past, new)
        logits = self._head(x, new, keep)
        return ir.Graph(
            [ids, mask, keep, *self.state_inputs.values()],
            [logits, *(self.state_outputs[s.output] for s in self.states)],
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            opset_imports={"": OPSET, SEMANTIC: 1},
            name="lfm2",
        )

    def _head(self, x: ir.Value, new: ir.Value, keep: ir.Value) -> ir.Value:
        # Rows are picked before the norm and the head, so only they are paid for.
        (x,) = self._semantic("TakeLast", "take_last", x, new, keep)
        norm = self._weight(FINAL_NORM)
        (x,) = self._semantic("RMSNorm", "norm", x, norm, epsilon=self.config.norm_eps)
        head = self._weight(EMBEDDING if self.config.tie_word_embeddings else HEAD)
        (logits,) = self._semantic("Linear", "head", x, head)
        return _describe(logits, LOGITS, (BATCH, 1, self.config.vocab_size))

    def _instantiate(
        self, block: ir.Graph, layer: int, x: ir.Value, past: ir.Value, new: ir.Value
    ) -> ir.Value:
        own = [s for s in self.states if s.layer == layer]
        actual = [x, *(self.state_inputs[s.input] for s in own), past, new]
        values: dict[ir.Value, ir.Value] = dict(zip(block.inputs, actual, strict=True))
        for name, value in block.initializers.items():
            values[value] = self._weight(checkpoint_name(f"layers.{layer}.{name}"))
        for number, node in enumerate(block):
            self.nodes.append(_copy(node, values, f"layer{layer}/{node.op_type}_{number}"))
        y, *present = (values[output] for output in block.outputs)
        for spec, value in zip(own, present, strict=True):
            self.state_outputs[spec.output] = _describe_state(value, spec)
        return y

    def _semantic(
        self, op: str, name: str, *inputs: ir.Value, outputs: int = 1, **attributes: float
    ) -> tuple[ir.Value, ...]:
        node = ir.node(op, inputs, attributes, domain=SEMANTIC, num_outputs=outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}:{number}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def _weight(self, name: str) -> ir.Value:
        if name not in self.weights:
            self.weights[name] = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        return self.weights[name]


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], name: str) -> ir.Node:
    inputs = [None if v is None else values[v] for v in node.inputs]
    copy = ir.Node(
        node.domain, node.op_type, inputs, node.attributes.values(),
        num_outputs=len(node.outputs), name=name,
    )  # fmt: skip
    for number, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        new.name = f"{name}:{number}"
        values[old] = new
    return copy


def _tensor(
    name: str, shape: tuple[int | str, ...], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _describe(value: ir.Value, name: str, shape: tuple[int | str, ...]) -> ir.Value:
    value.name, value.shape = name, ir.Shape(shape)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return value


def _describe_state(value: ir.Value, spec: StateSpec) -> ir.Value:
    return _describe(value, spec.output, spec.shape)
