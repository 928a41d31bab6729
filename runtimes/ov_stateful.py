"""A stateful graph of any length: OpenVINO holds the states, as variables of a request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray, NamedStates
from lfm2_deploy.states import StateSpec
from runtimes.ov_device import Device, common_settings, compile_graph, read_graph, run
from runtimes.row_session import RowSession, Saved

# Prompts are appended in pieces of this many tokens, which bounds activations' memory.
PREFILL_CHUNK = 512
KEEP = "logits_to_keep"
_VARIABLE = re.compile(r"cache_params\.past\.(conv|key|value)\.(\d+)cache_params\.")
_ACTIVATION_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class StatefulModel:
    """A compiled graph whose requests hold one row each."""

    # A variable can be cut, so what was proposed can be taken back; a conv state cannot be
    # had from the middle of a run.
    max_proposal = 0

    def __init__(self, bundle: Bundle, device: Device, threads: int | None) -> None:
        self.config, self.states = bundle.config, bundle.manifest.states
        model = read_graph(bundle.graph)
        self.takes_positions = any("position_ids" in i.get_names() for i in model.inputs)
        _keep_last(model)
        settings = common_settings(device, threads)
        if device.kind == "CPU":
            settings |= _choose_cpu_precision(bundle.manifest.precision)
        elif device.kind == "GPU":
            settings |= _choose_gpu_precision(bundle.manifest.precision)
        self.arithmetic = _name_arithmetic(bundle.manifest.precision, device)
        self.compiled = compile_graph(model, device, settings, bundle.graph)

    def open(self, capacity: int) -> StatefulSession:
        """A fresh row."""
        return StatefulSession(self, capacity)


def _choose_cpu_precision(precision: str) -> dict[str, Any]:
    # Keys and values as floats: rounded to 8 bits, as is the default, they could not be put
    # back exactly. Float32 in between: bfloat16, the default where a processor has it, gives
    # logits of 8 bits, among which the largest may be several.
    exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    if precision in ("fp32", "fp16"):
        return {**exact, _ACTIVATION_GROUP: 0}
    # How many neighbours of an activation share a scale when rounded to 8 bits. OpenVINO's
    # default of 32 makes prompts a quarter slower, and single tokens 6 % faster, than 128; KL
    # divergences are the same.
    return {**exact, _ACTIVATION_GROUP: 128}


def _choose_gpu_precision(precision: str) -> dict[str, Any]:
    # As on the CPU: by default, GPUs without matrix units round keys and values to 8 bits, and
    # such states can be neither read nor put back. Not checked: it needs the device.
    float_type = "f32" if precision == "fp32" else "f16"
    settings: dict[str, Any] = {"KV_CACHE_PRECISION": float_type}
    if precision == "fp32":
        settings["INFERENCE_PRECISION_HINT"] = float_type
    if precision in ("fp32", "fp16"):
        settings[_ACTIVATION_GROUP] = 0
    return settings


def _name_arithmetic(precision: str, device: Device) -> str:
    """What activations become with those settings; see `RuntimeInfo.arithmetic`."""
    if precision in ("int8", "int4"):
        return "int8"
    return "float16" if device.kind != "CPU" and precision == "fp16" else "float32"


def _keep_last(model: ov.Model) -> None:
    """Give the graph an input that says of how many last positions logits are wanted."""
    (head,) = (r.input_value(0).get_node() for r in model.get_results())
    while head.get_type_name() == "Convert":
        head = head.input_value(0).get_node()
    keep = ops.parameter([1], dtype=np.int64, name=KEEP)
    keep.output(0).set_names({KEEP})
    end, one = (ops.constant([n], dtype=np.int64) for n in (np.iinfo(np.int64).max, 1))
    start = ops.negative(keep)
    cut = ops.slice(head.input_value(0), start, end, one, one)
    head.input(0).replace_source_output(cut.output(0))
    model.add_parameters([keep])
    model.validate_nodes_and_infer_types()


class StatefulSession(RowSession):
    """One row on a request of its own."""

    def __init__(self, model: StatefulModel, capacity: int) -> None:
        super().__init__(model.config, capacity, PREFILL_CHUNK)
        self._request = model.compiled.create_infer_request()
        self._specs, self._takes_positions = model.states, model.takes_positions
        self._variables = self._find_variables()
        self._request.set_tensor("beam_idx", ov.Tensor(np.zeros(1, np.int32)))
        self._ones = np.ones((1, capacity), np.int64)
        self._positions = np.arange(capacity, dtype=np.int64)[None]

    def _find_variables(self) -> list[tuple[StateSpec, Any]]:
        # By order within a kind: we number states by layer, optimum-intel each kind from 0.
        found: dict[str, dict[int, Any]] = {}
        for state in self._request.query_state():
            match = _VARIABLE.match(state.name)
            if match is not None:
                found.setdefault(match.group(1), {})[int(match.group(2))] = state
        ordered = {kind: iter([s for _, s in sorted(of.items())]) for kind, of in found.items()}
        return [(spec, next(ordered[spec.kind])) for spec in self._specs]

    def _run(self, tokens: Sequence[int], keep: int) -> FloatArray:
        request, before = self._request, self._length
        after = before + len(tokens)
        request.set_tensor("input_ids", ov.Tensor(np.array([tokens], np.int64)))
        request.set_tensor("attention_mask", ov.Tensor(self._ones[:, :after]))
        if self._takes_positions:
            request.set_tensor("position_ids", ov.Tensor(self._positions[:, before:after]))
        request.set_tensor(KEEP, ov.Tensor(np.array([keep], np.int64)))
        run(request)
        logits: FloatArray = request.get_tensor("logits").data[0]
        return logits

    def _clear(self) -> None:
        self._request.reset_state()

    def _save_conv(self) -> Saved:
        return [self._read(s, v, 0) for s, v in self._variables if s.kind == "conv"]

    def _read(self, spec: StateSpec, variable: Any, length: int) -> FloatArray:
        """A copy of a state, of keys and values up to a length."""
        if self._length == 0:  # OpenVINO shows states of no rows before the first call
            return np.zeros(spec.concrete_shape(1, 0), np.float32)
        data = variable.state.data
        # A conv state of L columns is somebody else's; nothing reads its oldest.
        width = spec.concrete_shape(1, 0)[-1]
        kept = data[:, :, -width:] if spec.kind == "conv" else data[:, :, :length]
        return np.array(kept, np.float32)

    def _load(self, length: int, conv: Saved) -> None:
        saved = iter(conv)
        for spec, variable in self._variables:
            if spec.kind == "conv":
                self._write(variable, next(saved))
            else:
                rows = np.ascontiguousarray(variable.state.data[:, :, :length])
                variable.state = ov.Tensor(rows)
        if length == 0:
            self._clear()

    def _save(self, length: int, conv: Saved) -> NamedStates:
        saved = iter(conv)
        arrays = {
            spec.input: next(saved) if spec.kind == "conv" else self._read(spec, variable, length)
            for spec, variable in self._variables
        }
        return NamedStates((length,), arrays)

    def _restore(self, snapshot: NamedStates) -> None:
        for spec, variable in self._variables:
            self._write(variable, snapshot.arrays[spec.input])
        if snapshot.lengths == (0,):
            self._clear()

    @staticmethod
    def _write(variable: Any, array: FloatArray) -> None:
        """Set a variable, with zeros for a conv state's oldest column where it has one more."""
        missing = variable.state.data.shape[2] - array.shape[2] if array.ndim == 3 else 0
        if missing > 0:
            array = np.pad(array, ((0, 0), (0, 0), (missing, 0)))
        variable.state = ov.Tensor(np.ascontiguousarray(array))
