"""GGUF tensors -> where each canonical tensor lies among them.

Enters: a config and a file's header. Leaves: for every name of `weights.list_weights`, the tensor
that holds it and at which row it begins. Reads no numbers.

Nothing is transposed or permuted (LFM2 rotates halves, as transformers does); a convolution lacks
the dimension of size 1, the experts of a layer lie one after the other in one tensor, and query,
key and value may.

Source: llama.cpp, conversion/lfm2.py, src/models/lfm2.cpp and gguf-py/gguf/constants.py (gguf
0.19).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from lfm2_deploy.checkpoint.gguf_file import GgufFile, GgufTensor
from lfm2_deploy.checkpoint.gguf_numbers import is_readable
from lfm2_deploy.checkpoint.layout import join_problems
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import CheckpointError
from lfm2_deploy.weights import EMBEDDING, FINAL_NORM, HEAD, WeightSpec, list_weights

OUTPUT = "output.weight"
BIAS = "exp_probs_b.bias"
_WHOLE = {EMBEDDING: "token_embd.weight", FINAL_NORM: "token_embd_norm.weight", HEAD: OUTPUT}
_IN_LAYER = {
    "operator_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.gate.weight": "ffn_gate_inp.weight",
    "feed_forward.expert_bias": BIAS,
}
_EXPERTS = {"w1": "ffn_gate_exps.weight", "w2": "ffn_down_exps.weight", "w3": "ffn_up_exps.weight"}
_JOINED = "attn_qkv.weight"
_IN_JOINED = {f"self_attn.{letter}_proj.weight": letter for letter in "qkv"}
_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_EXPERT = re.compile(r"feed_forward\.experts\.(?P<expert>\d+)\.(?P<matrix>w[123])\.weight")


@dataclass(frozen=True, slots=True)
class GgufPiece:
    """A canonical tensor's place: rows of a stored one, from number `first_row` on."""

    tensor: GgufTensor
    first_row: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows of the stored tensor it is."""
        return prod(self.shape) // self.tensor.shape[-1]


@dataclass(frozen=True, slots=True)
class _Home:
    """The stored tensor a canonical one is expected in, and where in it."""

    name: str
    shape: tuple[int, ...]
    first_row: int = 0


def locate_gguf(config: Lfm2Config, file: GgufFile) -> dict[str, GgufPiece]:
    """Find every tensor of a model, and account for every tensor stored.

    Args:
        config: the model.
        file: its header.

    Returns:
        A piece for each canonical name.

    Raises:
        CheckpointError: tensors are missing, unexpected, mis-shaped or of a type that cannot be
            read; the first few are named.
    """
    pieces: dict[str, GgufPiece] = {}
    problems: list[str] = []
    known: set[str] = set()
    for spec in list_weights(config):
        home = _find_home(spec, config, file.tensors)
        known.add(home.name)
        tensor = file.tensors.get(home.name)
        problem = _judge(home, tensor)
        if problem or tensor is None:
            problems.append(problem)
        else:
            pieces[spec.name] = GgufPiece(tensor, home.first_row, spec.shape)
    extra = (name for name in file.tensors if name not in known)
    problems += [f"{name} is not part of this model" for name in extra]
    if problems:
        raise CheckpointError(
            f"{file.path} has {join_problems(problems)}; download it again, or convert it again "
            "with a current llama.cpp"
        )
    return pieces


def _find_home(spec: WeightSpec, config: Lfm2Config, stored: Mapping[str, GgufTensor]) -> _Home:
    if spec.name in _WHOLE:
        return _Home(_WHOLE[spec.name], spec.shape)
    match = _LAYER.fullmatch(spec.name)
    assert match is not None
    block, rest = f"blk.{match['layer']}", match["rest"]
    expert, joined = _EXPERT.fullmatch(rest), f"{block}.{_JOINED}"
    if expert is not None:
        assert config.moe is not None
        rows = spec.shape[0]
        stacked = (config.moe.num_experts, *spec.shape)
        return _Home(f"{block}.{_EXPERTS[expert['matrix']]}", stacked, int(expert["expert"]) * rows)
    if joined in stored and rest in _IN_JOINED:
        return _find_in_joined(joined, _IN_JOINED[rest], config)
    shape = spec.shape if spec.role != "conv" else (spec.shape[0], spec.shape[2])
    return _Home(f"{block}.{_IN_LAYER[rest]}", shape)


def _find_in_joined(name: str, letter: str, config: Lfm2Config) -> _Home:
    query = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    first = {"q": 0, "k": query, "v": query + kv}[letter]
    return _Home(name, (query + 2 * kv, config.hidden_size), first)


def _judge(home: _Home, tensor: GgufTensor | None) -> str:
    """What is the matter with a tensor; "" for nothing."""
    if tensor is None:
        return f"{home.name} is missing, expected {list(home.shape)}"
    if tensor.shape != home.shape:
        return f"{home.name} is {list(tensor.shape)}, expected {list(home.shape)}"
    if not is_readable(tensor.type_name):
        return f"{home.name} is {tensor.type_name}, which the gguf package does not read"
    return ""
