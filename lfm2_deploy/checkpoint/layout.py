"""Stored tensors -> where each canonical tensor lies among them.

Enters: a config and what file headers say. Leaves: for every name of
`weights.list_weights`, the stored tensor that holds it and at which element it begins.
Knows the two layouts experts are saved in; reads no numbers.

Per expert:  experts.E.w1.weight [I,H], experts.E.w3.weight [I,H], experts.E.w2.weight [H,I]
Fused:       experts.gate_up_proj [E,2I,H] (w1 above w3), experts.down_proj [E,H,I] (w2)

Source: transformers 5.24, `models/lfm2_moe` and `conversion_mapping.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lfm2_deploy.checkpoint.tensor_file import DTYPE_BYTES, StoredTensor
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import CheckpointError
from lfm2_deploy.weights import HEAD, WeightSpec, list_weights

_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<expert>\d+)\.(?P<matrix>w[123])\.weight")
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A canonical tensor's place: elements of a stored one, from number `start` on."""

    tensor: StoredTensor
    start: int
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Home:
    """The stored tensor a canonical one is expected in, and where in it."""

    name: str
    shape: tuple[int, ...]
    start: int


def locate_weights(
    config: Lfm2Config, stored: Mapping[str, StoredTensor], folder: Path
) -> dict[str, Piece]:
    """Find every tensor of a model, and account for every tensor stored.

    Args:
        config: the model.
        stored: all tensors of all files, by stored name; of a text part, by the name a text model
            would have given.
        folder: where the files are, to name in errors.

    Returns:
        A piece for each canonical name.

    Raises:
        CheckpointError: tensors are missing, unexpected, mis-shaped or of another dtype;
            the first few are named.
    """
    pieces: dict[str, Piece] = {}
    problems: list[str] = []
    known: set[str] = set()
    for spec in list_weights(config):
        home = _find_home(spec, config, stored)
        known.add(home.name)
        problem = _judge(home, stored.get(home.name))
        if problem is None:
            pieces[spec.name] = Piece(stored[home.name], home.start, spec.shape)
        else:
            problems.append(problem)
    problems += [
        f"{name} in {tensor.file.name} is not part of this model"
        for name, tensor in stored.items()
        if name not in known and not _is_tied_head(config, name, tensor)
    ]
    if problems:
        raise CheckpointError(
            f"{folder} has {join_problems(problems)}; check that config.json and weights are "
            "of the same model, or download them again"
        )
    return pieces


def _find_home(spec: WeightSpec, config: Lfm2Config, stored: Mapping[str, StoredTensor]) -> _Home:
    own = _Home(spec.name, spec.shape, start=0)
    match = _EXPERT.fullmatch(spec.name)
    if match is None or config.moe is None:
        return own
    fused = _fused_home(spec, match, config.moe.num_experts)
    # A fused tensor holds all experts, so names of single ones beside it are left over,
    # and `locate_weights` refuses them.
    return fused if fused.name in stored else own


def _fused_home(spec: WeightSpec, match: re.Match[str], experts: int) -> _Home:
    rows, columns = spec.shape
    expert, matrix = int(match["expert"]), match["matrix"]
    if matrix == "w2":
        shape = (experts, rows, columns)
        return _Home(f"{match['experts']}.down_proj", shape, expert * rows * columns)
    first_row = expert * 2 * rows + (rows if matrix == "w3" else 0)
    shape = (experts, 2 * rows, columns)
    return _Home(f"{match['experts']}.gate_up_proj", shape, first_row * columns)


def _judge(home: _Home, tensor: StoredTensor | None) -> str | None:
    if tensor is None:
        return f"{home.name} is missing, expected {list(home.shape)}"
    where = f"{home.name} in {tensor.file.name}"
    if tensor.dtype not in DTYPE_BYTES:
        return f"{where} is {tensor.dtype}, expected {', '.join(DTYPE_BYTES)}"
    if tensor.shape != home.shape:
        return f"{where} is {list(tensor.shape)}, expected {list(home.shape)}"
    return None


def _is_tied_head(config: Lfm2Config, name: str, tensor: StoredTensor) -> bool:
    """Whether this is a head that a tied model was saved with although it needs none."""
    expected = (config.vocab_size, config.hidden_size)
    return config.tie_word_embeddings and name == HEAD and tensor.shape == expected


def join_problems(problems: list[str]) -> str:
    """Several problems as one clause: how many, and the first few."""
    # A fused tensor is judged once for every expert in it.
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        return f"1 problem: {distinct[0]}"
    more = len(distinct) - _SHOWN_PROBLEMS
    shown = "; ".join(distinct[:_SHOWN_PROBLEMS])
    return f"{len(distinct)} problems: {shown}" + (f"; and {more} more" if more > 0 else "")
