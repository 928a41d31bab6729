"""An onnxruntime session as `static_graph.py` asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from runtimes.static_graph import Array, Bound, Function, Port

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


class OrtGraph:
    """`StaticGraph` and `AnyLength` on an InferenceSession."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    @property
    def inputs(self) -> dict[str, Port]:
        """See `StaticGraph.inputs`."""
        return {value.name: _describe(value) for value in self._session.get_inputs()}

    def bind(self, shared: Mapping[str, Array]) -> Bound:
        """See `StaticGraph.bind`."""
        binding = self._session.io_binding()
        inputs, outputs = (
            {
                v.name: shared[v.name] if v.name in shared else _describe(v).allocate()
                for v in values
            }
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return Bound(lambda: self._session.run_with_iobinding(binding), inputs, outputs)

    def open(self) -> Function:
        """See `AnyLength.open`."""
        session = self._session
        names = [output.name for output in session.get_outputs()]

        def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))

        return call


def _describe(value: Any) -> Port:
    return Port(tuple(value.shape), _DTYPES.get(value.type, value.type))
