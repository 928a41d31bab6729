"""A checkpoint and an adapter -> the checkpoint with the adapter merged in.

Enters: any `Checkpoint`. Leaves: the same tensors, changed as they are read, so that
no merged copy is ever held or written.
"""

from __future__ import annotations

from dataclasses import replace

from lfm2_deploy.checkpoint.adapter import WAY_OUT, Adapter, LoraPair
from lfm2_deploy.checkpoint.derived import DerivedCheckpoint
from lfm2_deploy.checkpoint.layout import join_problems
from lfm2_deploy.checkpoint.tensor_file import (
    StoredTensor,
    identify_files,
    read_floats,
    require_finite,
)
from lfm2_deploy.contracts import Checkpoint, FloatArray, Origin
from lfm2_deploy.errors import CheckpointError
from lfm2_deploy.weights import WeightSpec, list_weights

# An embedding is left out: its LoRA is stored another way, and would change a tied head.
_MATRICES = ("projection", "expert", "router", "head")


class LoraCheckpoint(DerivedCheckpoint):
    """A `Checkpoint` that adds scale * B @ A to the tensors an adapter names.

    Args:
        base: the model's own weights.
        adapter: what to add.

    Raises:
        CheckpointError: the adapter names a tensor that the model does not have, or one
            of another shape.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        specs = {spec.name: spec for spec in list_weights(base.config)}
        judged = [_judge(name, specs.get(name), pair) for name, pair in adapter.pairs.items()]
        problems = [problem for problem in judged if problem is not None]
        if problems:
            raise CheckpointError(
                f"adapter {adapter.folder} does not fit {base.origin.name}, "
                f"{join_problems(problems)}; use the model it was trained on, or {WAY_OUT}"
            )
        super().__init__(base)
        self._adapter = adapter

    @property
    def origin(self) -> Origin:
        """The base's, with the adapter's name."""
        return replace(self.base.origin, adapter=self._adapter.folder.resolve().name)

    @property
    def identity(self) -> str:
        """The base's and the adapter's."""
        pairs = self._adapter.pairs.values()
        scales = sorted({(pair.a.name, pair.scale) for pair in pairs})
        return f"{self.base.identity} + {identify_files({p.a.file for p in pairs})} {scales}"

    def read(self, name: str) -> FloatArray:
        """One tensor, float32 in its canonical shape, merged.

        Raises:
            CheckpointError: no such tensor; or it is truncated, or not finite.
        """
        weight = self.base.read(name)
        pair = self._adapter.pairs.get(name)
        if pair is None:
            return weight
        # The narrow matrix is scaled, so that nothing wide is made but the product.
        merged: FloatArray = _read_matrix(pair.b) @ (pair.scale * _read_matrix(pair.a))
        merged += weight
        require_finite(merged, f"{name} with adapter {self._adapter.folder}")
        return merged


def _judge(name: str, spec: WeightSpec | None, pair: LoraPair) -> str | None:
    if spec is None:
        return f"{name} is not part of this model"
    if spec.role not in _MATRICES:
        return f"{name} is of kind '{spec.role}', expected one of {', '.join(_MATRICES)}"
    rows, columns = spec.shape
    seen = f"A {list(pair.a.shape)} and B {list(pair.b.shape)}"
    expected = f"A {[pair.rank, columns]} and B {[rows, pair.rank]}"
    return None if seen == expected else f"{name} has {seen}, expected {expected}"


def _read_matrix(tensor: StoredTensor) -> FloatArray:
    rows, columns = tensor.shape
    values = read_floats(tensor, 0, rows * columns)
    require_finite(values, f"{tensor.name} in {tensor.file}")
    return values.reshape(rows, columns)
