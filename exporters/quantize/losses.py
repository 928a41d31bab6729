"""Weights and the bytes that stand for them -> how far off those are, tensor by tensor.

Measured while a weight is encoded, on what was encoded: nothing is read twice, and pieces of a
matrix stay in a core's cache. Sums of squares come out, since a tensor may be stored in parts by
several jobs; they are added up in the order of the jobs, so that every run gives the same digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from exporters.quantize.pack import ByteArray, FloatArray, dequantize, unpack
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.quantization_record import TensorError, WeightError

# Numbers decoded at once.
_PIECE = 1 << 16
_EXPERT = re.compile(r"\.experts\.\d+\.")
_Line = TypeVar("_Line", TensorError, WeightError)


@dataclass(frozen=True, slots=True)
class Sums:
    """Of a tensor, or of a part of one.

    Args:
        lost: the sum of squares of what rounding changed.
        whole: the sum of squares of the exact weights.
    """

    lost: float
    whole: float


def measure_packed(
    weight: FloatArray, packed: ByteArray, scales: FloatArray, bits: int, flip: int = 0
) -> Sums:
    """What was lost of a matrix that is stored row by row.

    Args:
        weight: float32 [N, K], exact.
        packed: uint8 of any shape that begins with N, as `pack.pack` gives it.
        scales: [N, G] or [N], of any float type.
        bits: of a level.
        flip: bits of each byte that are stored the other way round.
    """
    rows = len(weight)
    packed, scales = packed.reshape(rows, -1), scales.reshape(rows, -1)

    def read(piece: slice) -> FloatArray:
        levels = unpack(packed[piece] ^ np.uint8(flip), bits)
        return dequantize(levels, scales[piece].astype(np.float32), bits)

    return sum_losses(weight, read)


def sum_losses(weight: FloatArray, read: Callable[[slice], FloatArray]) -> Sums:
    """What was lost of a matrix [N, K], of which `read` gives some rows as they are stored."""
    lost = whole = 0.0
    at_once = max(1, _PIECE // weight.shape[1])
    for start in range(0, len(weight), at_once):
        exact = weight[start : start + at_once]
        lost += _sum_squares(read(slice(start, start + at_once)) - exact)
        whole += _sum_squares(exact)
    return Sums(lost, whole)


def _sum_squares(x: FloatArray) -> float:
    # In float64: squares of what float32 holds may be beyond its range.
    return float(np.square(x, dtype=np.float64).sum())


def list_errors(
    found: Iterable[Mapping[str, Sums]], plan: Mapping[str, TensorPlan]
) -> tuple[WeightError, ...]:
    """The error of each tensor, and of all experts of a layer in one line.

    Args:
        found: by tensor, in the order of the jobs that measured it.
        plan: how tensors are stored.
    """
    totals: dict[str, Sums] = {}
    for sums in found:
        for name, part in sums.items():
            before = totals.get(name, Sums(0.0, 0.0))
            totals[name] = Sums(before.lost + part.lost, before.whole + part.whole)
    # In the plan's order: jobs are in that of the graphs.
    names = [name for name in plan if name in totals]
    errors = {name: relate(totals[name]) for name in names}
    return tuple(summarize_errors(errors, plan, WeightError))


def summarize_errors(
    errors: Mapping[str, float], plan: Mapping[str, TensorPlan], kind: type[_Line]
) -> Iterator[_Line]:
    """Errors by tensor -> a line each, and one for all experts of a layer.

    Args:
        errors: relative.
        plan: how tensors are stored.
        kind: what they are errors of.
    """
    lines: dict[str, list[str]] = {}
    for name in errors:
        lines.setdefault(_EXPERT.sub(".experts.*.", name), []).append(name)
    for line, names in lines.items():
        own, entry = [errors[name] for name in names], plan[names[0]]
        mean = float(np.sqrt(np.mean(np.square(own))))
        yield kind(line, entry.bits, entry.group, shorten(mean), shorten(max(own)))


def relate(sums: Sums) -> float:
    """||W - Q|| / ||W||; of zeros, which stay zeros, 0."""
    return float((sums.lost / sums.whole) ** 0.5) if sums.whole > 0 else 0.0


def shorten(error: float) -> float:
    """Four digits: more are not measured."""
    return float(f"{error:.3e}")
