"""Graphs of fixed shape, for an NPU: a chunk of a prompt, and one token.

The host owns all states, in buffers that both graphs are bound to. Of keys and values only
new rows come out, and are written into the buffers here; so are conv states. Token
embeddings and the head are graphs of their own, on the CPU; a mixture of experts is cut
into segments, with the experts in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray, NamedStates
from lfm2_deploy.errors import BundleError
from lfm2_deploy.manifest import GraphRecord
from lfm2_deploy.rotary import compute_rotary
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import (
    COS,
    DECODE,
    EMBED,
    EMBEDS,
    ENDS,
    EXPERTS,
    HEAD,
    HIDDEN,
    HISTORY_MASK,
    INPUT_IDS,
    LOGITS,
    MASKED,
    PREFILL,
    ROUTERS,
    SIN,
    name_expert_input,
    name_residual,
)
from runtimes.ov_device import (
    Device,
    common_settings,
    compile_graph,
    find_device,
    find_platform,
    import_blob,
    read_graph,
    run,
    version,
)
from runtimes.ov_experts import HostRouted, Mixture, WholeLayers
from runtimes.ov_session import OvSession, Saved
from runtimes.ov_split import split_graph

Array = NDArray[Any]
# Compiled graphs of a file, by the input each begins with.
Graphs = Mapping[str, ov.CompiledModel]


class StaticModel:
    """The compiled graphs of a bundle, and what all rows share."""

    max_proposal = 0

    def __init__(self, bundle: Bundle, device: Device, threads: int | None) -> None:
        manifest = bundle.manifest
        self.config, self.states = bundle.config, manifest.states
        self.chunk, self.context_length = manifest.chunk, manifest.context_length
        compiled = {
            graph.name: _compile(bundle, graph, _place(graph, device), threads)
            for graph in manifest.graphs
        }
        _check_graphs(bundle, compiled)
        self.embed, self.head = (next(iter(compiled[name].values())) for name in (EMBED, HEAD))
        self.prefill, self.decode = compiled[PREFILL], compiled[DECODE]
        self.mixture = _make_mixture(bundle, compiled)
        self.dtype = np.dtype(manifest.states[0].dtype)
        self.rotary = _lay_out_rotary(bundle, self.dtype)

    def open(self, capacity: int) -> StaticSession:
        """A fresh row."""
        return StaticSession(self, capacity)


def _check_graphs(bundle: Bundle, compiled: Mapping[str, Graphs]) -> None:
    """Refuse graphs that are not what the manifest says.

    Raises:
        BundleError: one is missing, or of another shape.
    """
    manifest, config = bundle.manifest, bundle.config
    length, half = manifest.context_length, config.head_dim // 2
    states = {s.input: (s.concrete_shape(1, length), s.dtype) for s in manifest.states}
    dtype = manifest.states[0].dtype
    layers = config.moe_layers
    wanted = {EMBED, HEAD, PREFILL, DECODE, *(f"{EXPERTS}.{n}" for n in layers)}
    if not wanted <= compiled.keys():
        raise _damaged(bundle, f"graph {min(wanted - compiled.keys())} is missing")
    for name, steps in ((PREFILL, manifest.chunk), (DECODE, 1)):
        expected = {
            **states,
            EMBEDS: ((1, steps, config.hidden_size), dtype),
            COS: ((1, steps, 1, half), dtype),
            SIN: ((1, steps, 1, half), dtype),
            HISTORY_MASK: ((1, 1, 1, length), dtype),
        }
        for port in (port for graph in compiled[name].values() for port in graph.inputs):
            found = tuple(port.shape), port.element_type.to_dtype().name
            if expected.get(port.any_name, found) != found:
                raise _damaged(bundle, f"{port.any_name} of graph {name} is {found}")
        if EMBEDS not in compiled[name]:
            raise _damaged(bundle, f"graph {name} takes no {EMBEDS}")


def _damaged(bundle: Bundle, what: str) -> BundleError:
    return BundleError(
        f"{bundle.path} is damaged, or of another version: {what}; export the model again"
    )


def _place(graph: GraphRecord, device: Device) -> Device:
    """Where a graph runs: all of a bundle on the CPU where the bundle was asked to."""
    if graph.device == "target" or device.kind == "CPU":
        return device
    return find_device(graph.device)


def _compile(
    bundle: Bundle, graph: GraphRecord, device: Device, threads: int | None
) -> dict[str, ov.CompiledModel]:
    """A file's graphs by the input each begins with."""
    if device.kind == "NPU":
        ready = _import_blobs(bundle, graph.name, device)
        if ready:
            return ready
    path = bundle.path / graph.file
    settings = common_settings(device, threads)
    if device.kind == "CPU":
        # As the device it stands in for, which rounds no activations to 8 bits.
        settings |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = read_graph(path)
    graphs = {graph.name: model} if graph.name in (EMBED, HEAD) else split_graph(model)
    return {name: compile_graph(m, device, settings, path) for name, m in graphs.items()}


def _import_blobs(bundle: Bundle, graph: str, device: Device) -> dict[str, ov.CompiledModel]:
    """What was compiled ahead of time for this NPU and this OpenVINO; nothing where it was not.

    Any other version of OpenVINO refuses a blob, and compiles the graph as if there were none.
    """
    here = (find_platform(device), version())
    return {
        blob.start: import_blob(bundle.path / blob.file, device)
        for blob in bundle.manifest.blobs
        if blob.graph == graph and (blob.platform, blob.openvino) == here
    }


def _make_mixture(
    bundle: Bundle, compiled: Mapping[str, dict[str, ov.CompiledModel]]
) -> Mixture | None:
    moe = bundle.config.moe
    if moe is None:
        return None
    experts: dict[str, ov.CompiledModel] = {}
    for name, graphs in compiled.items():
        if name.startswith(EXPERTS):
            experts |= graphs
    if ROUTERS in compiled:
        return HostRouted(moe, compiled[ROUTERS], experts)
    return WholeLayers(experts)


def _lay_out_rotary(bundle: Bundle, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Cosines and sines [T, D/2] of every position."""
    config = bundle.config
    cos, sin = compute_rotary(config.rope_theta, config.head_dim, bundle.manifest.context_length)
    return cos.astype(dtype), sin.astype(dtype)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A graph's request and the buffers bound to it.

    Args:
        request: OpenVINO's.
        start: the input that hidden states enter by.
        layer: whose experts come after it; None after the last.
        inputs, outputs: buffers by name.
        states: kind of each state that it writes, the state's buffer, and the new part.
    """

    request: Any
    start: str
    layer: int | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    states: Sequence[tuple[str, Array, Array]]


class StaticSession(OvSession):
    """One row, whose states lie in buffers."""

    def __init__(self, model: StaticModel, capacity: int) -> None:
        super().__init__(model.config, capacity, model.chunk)
        self._model, self._specs = model, model.states
        length = model.context_length
        self._states = {
            s.input: np.zeros(s.concrete_shape(1, length), model.dtype) for s in model.states
        }
        self._mask = np.full((1, 1, 1, length), MASKED, model.dtype)
        self._embed, self._head = (c.create_infer_request() for c in (model.embed, model.head))
        self._decode, self._prefill = self._bind(model.decode), self._bind(model.prefill)

    def _bind(self, graphs: Mapping[str, ov.CompiledModel]) -> list[_Segment]:
        shared = {**self._states, HISTORY_MASK: self._mask}
        return [_bind(compiled, start, shared, self._specs) for start, compiled in graphs.items()]

    def _run(self, tokens: Sequence[int], keep: int) -> FloatArray:
        count = len(tokens)
        segments = self._prefill if count > 1 else self._decode
        hidden = self._look_up(tokens)
        for segment in segments:
            hidden = self._call(segment, hidden, count)
        for segment in segments:
            self._take_states(segment, count)
        self._mask[..., self._length : self._length + count] = 0
        return self._score(hidden[:, count - keep : count])

    def _look_up(self, tokens: Sequence[int]) -> Array:
        self._embed.set_tensor(INPUT_IDS, ov.Tensor(np.array([tokens], np.int64)))
        run(self._embed)
        rows: Array = self._embed.get_tensor(EMBEDS).data
        return rows

    def _call(self, segment: _Segment, hidden: Array, count: int) -> Array:
        """Hidden states [1, n, H] through one segment and the experts after it."""
        inputs, outputs, before = segment.inputs, segment.outputs, self._length
        inputs[segment.start][:, :count] = hidden[:, :count]
        inputs[segment.start][:, count:] = 0
        for name, table in zip((COS, SIN), self._model.rotary, strict=True):
            if name in inputs:
                inputs[name][0, :count, 0] = table[before : before + count]
        if ENDS in inputs:
            # Row i of it picks column count + i of (past, new).
            inputs[ENDS][:] = 0
            width = self.config.conv_state_width
            inputs[ENDS][0, range(width), range(count, count + width)] = 1
        run(segment.request)
        if segment.layer is None:
            return outputs[HIDDEN]
        assert self._model.mixture is not None
        x = outputs[name_expert_input(segment.layer)][0, :count]
        residual = outputs[name_residual(segment.layer)][:, :count]
        return residual + self._model.mixture.run(segment.layer, x)

    def _take_states(self, segment: _Segment, count: int) -> None:
        before = self._length
        for kind, state, new in segment.states:
            if kind == "conv":
                state[:] = new
            else:
                state[:, :, before : before + count] = new[:, :, :count]

    def _score(self, hidden: Array) -> FloatArray:
        self._head.set_tensor(HIDDEN, ov.Tensor(np.ascontiguousarray(hidden)))
        run(self._head)
        logits: FloatArray = self._head.get_tensor(LOGITS).data[0]
        return logits

    def _clear(self) -> None:
        for spec in self._specs:
            if spec.kind == "conv":
                self._states[spec.input][:] = 0
        self._show(0)

    def _show(self, length: int) -> None:
        """Let attention see so many rows of the history."""
        self._mask[..., :length] = 0
        self._mask[..., length:] = MASKED

    def _save_conv(self) -> Saved:
        return [self._states[s.input].copy() for s in self._specs if s.kind == "conv"]

    def _load(self, length: int, conv: Saved) -> None:
        # Rows of keys and values past a row's length are masked, so they may stay.
        saved = iter(conv)
        for spec in self._specs:
            if spec.kind == "conv":
                self._states[spec.input][:] = next(saved)
        self._show(length)

    def _save(self, length: int, conv: Saved) -> NamedStates:
        saved = iter(conv)
        arrays = {
            spec.input: (
                next(saved) if spec.kind == "conv" else self._states[spec.input][:, :, :length]
            ).copy()
            for spec in self._specs
        }
        return NamedStates((length,), arrays)

    def _restore(self, snapshot: NamedStates) -> None:
        (length,) = snapshot.lengths
        for spec in self._specs:
            state, array = self._states[spec.input], snapshot.arrays[spec.input]
            if spec.kind == "conv":
                state[:] = array
            else:
                state[:, :, :length] = array
        self._show(length)


def _bind(
    compiled: ov.CompiledModel,
    start: str,
    shared: Mapping[str, Array],
    specs: Sequence[StateSpec],
) -> _Segment:
    """A request with all its inputs and outputs in buffers: the shared ones, or its own."""
    request = compiled.create_infer_request()
    inputs: dict[str, Array] = {}
    for port in compiled.inputs:
        array = shared.get(port.any_name)
        inputs[port.any_name] = _allocate(port) if array is None else array
        request.set_tensor(port, ov.Tensor(inputs[port.any_name], shared_memory=True))
    outputs: dict[str, Array] = {}
    for port in compiled.outputs:
        array = _allocate(port)
        request.set_tensor(port, ov.Tensor(array, shared_memory=True))
        # A result may carry the names of what it passes on, besides its own.
        outputs |= dict.fromkeys(port.names, array)
    layers = [re.fullmatch(r"moe\.(\d+)\.residual", name) for name in outputs]
    layer = next((int(found[1]) for found in layers if found), None)
    states = [(s.kind, shared[s.input], outputs[s.output]) for s in specs if s.output in outputs]
    return _Segment(request, start, layer, inputs, outputs, states)


def _allocate(port: Any) -> Array:
    return np.zeros(tuple(port.shape), port.element_type.to_dtype())
