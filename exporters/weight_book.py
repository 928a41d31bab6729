"""What a graph's initializers are, and which checkpoint tensors fill them.

Passes declare initializers and jobs while no weight exists; `writer.py` runs the
jobs afterwards, two at a time, so memory is bounded by the largest two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.quantize.losses import Sums

Array = NDArray[Any]
# Float32 source tensors in, one array for each slot out.
Encoder = Callable[..., Sequence[Array]]
# (source tensors, what they were encoded as) -> what each source lost by it.
Measure = Callable[[Sequence[Array], Sequence[Array]], Sequence[Sums]]


@dataclass(frozen=True, slots=True)
class Declared:
    """An initializer: dtype and shape; `alias_of` names one whose bytes it shares."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    alias_of: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes in the weights file."""
        return int(self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)))


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one encoded array goes: a whole initializer, or its `index`-th slice."""

    initializer: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class WeightJob:
    """Read `sources`, encode them, put the results in `slots`.

    Args:
        sources: canonical names.
        encode: float32 tensors -> an array for each slot.
        slots: where they go.
        measure: what rounding took from the sources; None where nothing is rounded, or was
            before.
    """

    sources: tuple[str, ...]
    encode: Encoder
    slots: tuple[Slot, ...]
    measure: Measure | None = None


class WeightBook:
    """All declared initializers and the jobs that fill them.

    Several graphs may share a book: each has values of its own, which lie in one file.
    """

    def __init__(self) -> None:
        self.declared: dict[str, Declared] = {}
        self.jobs: list[WeightJob] = []

    def declare(
        self,
        graph: ir.Graph,
        name: str,
        shape: Sequence[int],
        dtype: ir.DataType = ir.DataType.FLOAT,
        alias_of: str = "",
    ) -> ir.Value:
        """Declare an initializer of a graph (once; a second call returns the first's value)."""
        if name in graph.initializers:
            return graph.initializers[name]
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        graph.initializers[name] = value
        self.declared.setdefault(name, Declared(name, dtype, tuple(shape), alias_of))
        return value

    def fill(
        self,
        sources: Sequence[str],
        encode: Encoder,
        *slots: Slot,
        measure: Measure | None = None,
    ) -> None:
        """Say how declared initializers are filled, and how what that loses is measured."""
        self.jobs.append(WeightJob(tuple(sources), encode, slots, measure))

    def constant_ints(self, graph: ir.Graph, values: Sequence[int]) -> ir.Value:
        """A small int64 vector kept in the graph itself."""
        name = "ints." + "_".join(map(str, values))
        return self.constant(graph, name, np.array(values, dtype=np.int64))

    def constant(self, graph: ir.Graph, name: str, array: Array) -> ir.Value:
        """A small array kept in the graph itself, once for each name."""
        if name not in graph.initializers:
            tensor = ir.tensor(array, name=name)
            graph.initializers[name] = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        return graph.initializers[name]
