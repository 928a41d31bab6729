"""Somebody else's ONNX graph on ONNX Runtime's CPU: what it can do, and sessions of one row.

The bundle's manifest says what the graph cannot (`lfm2_deploy.imported`), and capabilities follow
from that. Names and widths of states are ours already. Keys and values are one buffer for what is
read and written where GroupQueryAttention takes them so, and are handed on where the graph joins
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Capabilities, FloatArray, NamedStates, RuntimeInfo, Session
from lfm2_deploy.errors import BundleError, GenerationError
from lfm2_deploy.imported import GROWS, ONE_TOKEN, SLOW_EXPERTS, TRAITS
from lfm2_deploy.session_checks import check_session
from lfm2_deploy.states import StateSpec
from runtimes.drivers import describe_cpu
from runtimes.row_session import RowSession, Saved
from runtimes.separate_rows import SeparateRows

# Prompts are appended in pieces of this many tokens: logits of all positions of a piece are kept.
PREFILL_CHUNK = 512
_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_KEEP = "logits_to_keep"


class ImportedRuntime:
    """`contracts.Runtime` on one InferenceSession of an imported graph."""

    def __init__(self, bundle: Bundle, session: ort.InferenceSession) -> None:
        record = bundle.manifest.imported
        if record is None:
            raise BundleError(f"{bundle.path} was not imported; load it with runtime 'ort'")
        self.config: Lfm2Config = bundle.config
        self.context_length: int = bundle.manifest.context_length
        self.states: tuple[StateSpec, ...] = bundle.manifest.states
        self.grows = GROWS in record.traits
        self.appends_many = ONE_TOKEN not in record.traits
        self.types = {value.name: _TYPES.get(value.type) for value in session.get_inputs()}
        self._session: ort.InferenceSession | None = session
        self.info = RuntimeInfo(
            "ort",
            "cpu",
            Capabilities(self.appends_many, True, 0, True),
            notes=tuple(TRAITS[t] for t in record.traits if t == SLOW_EXPERTS),
            driver=f"onnxruntime {ort.__version__}, {describe_cpu()}",
            arithmetic=_name_arithmetic(bundle),
        )

    @property
    def session(self) -> ort.InferenceSession:
        """The loaded session.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self._session is None:
            raise GenerationError("this runtime is closed; load the bundle again")
        return self._session

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session; see `contracts.Runtime.open`. Each row has states of its own."""
        capacity = check_session(batch_size, capacity, self.context_length)
        rows = [ImportedSession(self, capacity) for _ in range(batch_size)]
        return rows[0] if batch_size == 1 else SeparateRows(rows, self.config.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self._session = None


def _name_arithmetic(bundle: Bundle) -> str:
    """See `RuntimeInfo.arithmetic`: of float16 graphs results are rounded between operators."""
    if bundle.manifest.precision in ("int8", "int4"):
        return "int8"
    return bundle.manifest.states[0].dtype


class ImportedSession(RowSession):
    """One row."""

    def __init__(self, runtime: ImportedRuntime, capacity: int) -> None:
        chunk = PREFILL_CHUNK if runtime.appends_many else capacity
        super().__init__(runtime.config, capacity, chunk)
        self._runtime, self._specs = runtime, runtime.states
        self._ones = np.ones((1, capacity), np.int64)
        self._places = np.arange(capacity, dtype=np.int64)[None]
        self._values: dict[str, ort.OrtValue] = {}
        # What fails is raised; printed, too, it would disturb a trial (4: fatal errors only).
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = 4
        self._clear()

    def _run(self, tokens: Sequence[int], keep: int) -> FloatArray:
        if self._length and len(tokens) > 1 and not self._runtime.appends_many:
            return self._run_singly(tokens, keep)
        return self._call(tokens, self._length, keep)

    def _run_singly(self, tokens: Sequence[int], keep: int) -> FloatArray:
        steps = [self._call([t], self._length + n, 1) for n, t in enumerate(tokens)]
        return np.concatenate(steps[-keep:])

    def _call(self, tokens: Sequence[int], before: int, keep: int) -> FloatArray:
        after = before + len(tokens)
        binding = self._runtime.session.io_binding()
        self._feed(binding, "input_ids", np.array([tokens], np.int64))
        self._feed(binding, "attention_mask", self._ones[:, :after])
        self._feed(binding, "position_ids", self._places[:, before:after])
        self._feed(binding, _KEEP, np.array([keep], np.int64))
        binding.bind_output("logits")
        for spec in self._specs:
            binding.bind_ortvalue_input(spec.input, self._values[spec.input])
            if self._is_shared(spec):
                binding.bind_ortvalue_output(spec.output, self._values[spec.input])
            else:
                binding.bind_output(spec.output)
        self._runtime.session.run_with_iobinding(binding, self._quiet)
        logits, *states = binding.get_outputs()
        for spec, value in zip(self._specs, states, strict=True):
            # A value over an array's memory keeps that array alive; what `get_outputs` gives of
            # the same memory does not (onnxruntime 1.32.0), so a shared one stays as it is.
            if not self._is_shared(spec):
                self._values[spec.input] = value
        return np.array(logits.numpy()[0, -keep:])

    def _feed(self, binding: ort.IOBinding, name: str, array: NDArray[Any]) -> None:
        """Bind an integer input that the graph has, in the type it has."""
        kind = self._runtime.types.get(name)
        if kind is not None:
            array = np.ascontiguousarray(array, kind)
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _is_shared(self, spec: StateSpec) -> bool:
        return spec.kind != "conv" and not self._runtime.grows

    def _clear(self) -> None:
        for spec in self._specs:
            shared = self._is_shared(spec)
            if shared and spec.input in self._values:
                continue  # rows past the length are never read
            shape = spec.concrete_shape(1, self.capacity if shared else 0)
            self._put(spec, np.zeros(shape, spec.dtype))

    def _put(self, spec: StateSpec, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array)
        self._values[spec.input] = ort.OrtValue.ortvalue_from_numpy(array)

    def _read(self, spec: StateSpec, length: int) -> NDArray[Any]:
        """A copy of a state, of keys and values up to a length."""
        array = self._values[spec.input].numpy()
        return np.array(array if spec.kind == "conv" else array[:, :, :length])

    def _save_conv(self) -> Saved:
        return [self._read(spec, 0) for spec in self._specs if spec.kind == "conv"]

    def _load(self, length: int, conv: Saved) -> None:
        saved = iter(conv)
        for spec in self._specs:
            if spec.kind == "conv":
                self._put(spec, next(saved))
            elif not self._is_shared(spec):
                self._put(spec, self._read(spec, length))

    def _save(self, length: int, conv: Saved) -> NamedStates:
        saved = iter(conv)
        arrays = {
            spec.input: next(saved) if spec.kind == "conv" else self._read(spec, length)
            for spec in self._specs
        }
        return NamedStates((length,), arrays)

    def _restore(self, snapshot: NamedStates) -> None:
        (length,) = snapshot.lengths
        for spec in self._specs:
            array = snapshot.arrays[spec.input]
            if self._is_shared(spec):
                whole = np.zeros(spec.concrete_shape(1, self.capacity), spec.dtype)
                whole[:, :, :length] = array
                array = whole
            # A copy: the snapshot may be restored again.
            self._put(spec, np.array(array))
