"""What a model takes: disk, memory, and bytes read for each token. Arithmetic only.

Enters: a config and how each tensor is stored, planned or read from a bundle. Leaves:
bytes. Disk is exact but for what the graph and tokenizer take; memory is a model of the
cpu target, within a tenth of what was measured (`benchmarks/plan.py`): the packed weights
as onnxruntime 1.32 keeps them, activations of one piece of a prompt, and the libraries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.manifest import StoredTensor
from lfm2_deploy.states import list_states
from lfm2_deploy.weights import EMBEDDING, WeightSpec, list_weights

# Kernels keep each group's scale and the sum of its levels, both float32.
_PACKED_GROUP_BYTES = 8
_SCALE_BYTES = _FLOAT_BYTES = 4
# Prompts are appended in pieces of this many tokens.
_CHUNK = 512
# Python, numpy and onnxruntime, with tokenizer and templates.
_LIBRARY_BYTES = 80 * 10**6
# torch, onnx and the graph, while a bundle is made; two weight jobs run at once.
_EXPORT_LIBRARY_BYTES = 330 * 10**6
_EXPORT_JOBS = 2


@dataclass(frozen=True, slots=True)
class Storage:
    """How one tensor is stored: bits, and how many neighbours share a scale (0: floats)."""

    bits: int
    group: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model.

    Args:
        download: the checkpoint, two bytes a parameter as they are published.
        weights: the weights file of the bundle.
        resident_weights: memory of loaded weights.
        activations: memory of one piece of a prompt.
        libraries: memory of a process that holds no model.
        export_peak: most memory while the bundle is made.
        kv_per_token: keys and values of one token.
        conv_state: states of one row's convolutions.
        read_weights: weights read for one token, of experts only the chosen.
    """

    download: int
    weights: int
    resident_weights: int
    activations: int
    libraries: int
    export_peak: int
    kv_per_token: int
    conv_state: int
    read_weights: int

    def resident(self, context: int) -> int:
        """Memory with one conversation of `context` tokens."""
        fixed = self.resident_weights + self.activations + self.libraries
        return fixed + self.conv_state + context * self.kv_per_token

    def read(self, context: int) -> int:
        """Bytes read to decode one token after `context` others."""
        return self.read_weights + self.conv_state + context * self.kv_per_token

    def longest_context(self, memory: int) -> int:
        """The longest conversation that fits into so much memory; negative if none does."""
        return (memory - self.resident(0)) // self.kv_per_token if self.kv_per_token else 0


def measure_footprint(
    config: Lfm2Config, storages: Mapping[str, Storage], context_length: int
) -> Footprint:
    """Add up a model.

    Args:
        config: the model.
        storages: canonical tensor name -> how it is stored.
        context_length: for which positional tables are written.
    """
    weights = [(spec, storages[spec.name]) for spec in list_weights(config)]
    tables = 2 * context_length * (config.head_dim // 2) * _FLOAT_BYTES
    return Footprint(
        download=sum(2 * spec.num_elements for spec, _ in weights),
        weights=sum(_stored(spec, storage) for spec, storage in weights) + tables,
        resident_weights=sum(_resident(config, *weight) for weight in weights) + tables,
        activations=_CHUNK * _activation_bytes(config),
        libraries=_LIBRARY_BYTES,
        export_peak=_export_peak(config, storages),
        kv_per_token=_count_state_bytes(config, 1) - _count_state_bytes(config, 0),
        conv_state=_count_state_bytes(config, 0),
        read_weights=sum(_read(config, *weight) for weight in weights),
    )


def expand_plan(config: Lfm2Config, lines: Iterable[StoredTensor]) -> dict[str, Storage]:
    """A manifest's lines, one for all experts of a layer, -> each tensor's storage."""
    stored = {line.name: Storage(line.bits, line.group) for line in lines}
    names = (spec.name for spec in list_weights(config))
    return {name: stored[re.sub(r"\.experts\.\d+\.", ".experts.*.", name)] for name in names}


def _stored(spec: WeightSpec, storage: Storage) -> int:
    groups = spec.num_elements // storage.group if storage.group else 0
    return spec.num_elements * storage.bits // 8 + groups * _SCALE_BYTES


def _packed(spec: WeightSpec, storage: Storage) -> int:
    """As kernels read it; float16 is computed, and so kept, in float32."""
    if not storage.group:
        return spec.num_elements * _FLOAT_BYTES
    groups = spec.num_elements // storage.group
    return spec.num_elements * storage.bits // 8 + groups * _PACKED_GROUP_BYTES


def _resident(config: Lfm2Config, spec: WeightSpec, storage: Storage) -> int:
    packed = _packed(spec, storage)
    if spec.name != EMBEDDING:
        return packed
    # Rows are looked up in the file's own order; a tied head is kept packed besides.
    table = packed if storage.bits == 16 else _stored(spec, storage)
    return table + (packed if config.tie_word_embeddings else 0)


def _read(config: Lfm2Config, spec: WeightSpec, storage: Storage) -> int:
    if spec.name == EMBEDDING and not config.tie_word_embeddings:
        return _packed(spec, storage) // spec.shape[0]
    if spec.role == "expert":
        assert config.moe is not None
        chosen, all_experts = config.moe.num_experts_per_tok, config.moe.num_experts
        return _packed(spec, storage) * chosen // all_experts
    return _packed(spec, storage)


def _activation_bytes(config: Lfm2Config) -> int:
    """Of one token: the widest layer's values, and every convolution's window."""
    hidden = config.hidden_size
    widest = 4 * config.intermediate_size
    if config.moe is not None:
        inner = config.moe.moe_intermediate_size
        widest = max(widest, 2 * config.moe.num_experts_per_tok * (hidden + 3 * inner))
    return _FLOAT_BYTES * (len(config.conv_layers) * hidden + 6 * hidden + widest)


def _count_state_bytes(config: Lfm2Config, capacity: int) -> int:
    total = 0
    for spec in list_states(config):
        count = 1
        for size in spec.concrete_shape(1, capacity):
            count *= size
        total += count * _FLOAT_BYTES
    return total


def _export_peak(config: Lfm2Config, storages: Mapping[str, Storage]) -> int:
    """The largest jobs at work together: each its tensor in float32, and what it becomes."""
    sizes = sorted(
        spec.num_elements * _FLOAT_BYTES + _stored(spec, storages[spec.name])
        for spec in list_weights(config)
    )
    return _EXPORT_LIBRARY_BYTES + sum(sizes[-_EXPORT_JOBS:])
