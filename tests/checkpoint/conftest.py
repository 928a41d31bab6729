"""Tiny checkpoints, adapters and raw files for the checkpoint tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint, open_synthetic
from lfm2_deploy.contracts import Checkpoint, FloatArray
from lfm2_deploy.weights import list_weights

Tensors = dict[str, FloatArray]


@pytest.fixture(scope="session")
def tiny_moe() -> SyntheticCheckpoint:
    return open_synthetic("tiny-moe")


@pytest.fixture(scope="session")
def tiny_dense() -> SyntheticCheckpoint:
    return open_synthetic("tiny-dense")


@pytest.fixture(scope="session")
def read_all() -> Callable[[Checkpoint], Tensors]:
    """Every tensor of a checkpoint, by canonical name."""

    def read(checkpoint: Checkpoint) -> Tensors:
        return {spec.name: checkpoint.read(spec.name) for spec in list_weights(checkpoint.config)}

    return read


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """Write config.json and model.safetensors, and return the folder."""

    def save(raw: Mapping[str, Any], tensors: Mapping[str, Any], name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(dict(raw)))
        save_file(dict(tensors), folder / "model.safetensors")
        return folder

    return save


@pytest.fixture
def save_shards(tmp_path: Path) -> Callable[..., Path]:
    """Write config.json, two shards and their index, and return the folder."""

    def save(raw: Mapping[str, Any], tensors: Tensors) -> Path:
        folder = tmp_path / "sharded"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dict(raw)))
        places = {
            name: f"model-0000{1 + position % 2}-of-00002.safetensors"
            for position, name in enumerate(tensors)
        }
        for shard in set(places.values()):
            part = {name: tensors[name] for name in tensors if places[name] == shard}
            save_file(part, folder / shard)
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return save


@pytest.fixture
def write_raw() -> Callable[..., Path]:
    """Write a safetensors file from a header and data that need not agree."""

    def write(file: Path, header: Any, data: bytes = b"") -> Path:
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
        return file

    return write


@pytest.fixture(scope="session")
def fuse() -> Callable[[Tensors], Tensors]:
    """Per-expert tensors -> the same in the fused layout."""

    def join(tensors: Tensors) -> Tensors:
        fused = {name: array for name, array in tensors.items() if ".experts." not in name}
        prefixes = {n.split(".experts.")[0] + ".experts" for n in tensors if ".experts." in n}
        for prefix in prefixes:
            count = sum(n.startswith(prefix) and n.endswith(".w2.weight") for n in tensors)

            def stack(matrix: str, prefix: str = prefix, count: int = count) -> FloatArray:
                return np.stack([tensors[f"{prefix}.{e}.{matrix}.weight"] for e in range(count)])

            fused[f"{prefix}.gate_up_proj"] = np.concatenate([stack("w1"), stack("w3")], axis=1)
            fused[f"{prefix}.down_proj"] = stack("w2")
        return fused

    return join


@pytest.fixture
def save_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write a PEFT adapter of rank 2 and alpha 8, changed by `options`."""

    def save(tensors: Mapping[str, FloatArray], **options: Any) -> Path:
        folder = tmp_path / "my-adapter"
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"} | options
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(dict(tensors), folder / "adapter_model.safetensors")
        return folder

    return save
