"""What a target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exporters.draft import Draft
from exporters.quantize.plan import Precision

Pass = Callable[[Draft], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A place a graph can be lowered for.

    Args:
        name: what users type after `--target`.
        runtime: name of the runtime that runs it.
        precisions: those it can hold.
        passes: rewrites in order; after them no node of the "lfm2" domain is left.
        opsets: domain -> version, of the operators that the passes leave.
        ir_version: ONNX file format version.
    """

    name: str
    runtime: str
    precisions: tuple[Precision, ...]
    passes: tuple[Pass, ...]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
