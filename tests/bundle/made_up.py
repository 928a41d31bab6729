"""A small bundle of made-up files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.bundle import (
    GRAPH,
    SCHEMA_VERSION,
    WEIGHTS,
    Manifest,
    StoredTensor,
    open_bundle,
    seal,
)
from lfm2_deploy.config import parse_config
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import BundleError
from lfm2_deploy.states import list_states
from lfm2_deploy.unfinished import writing_bundle

CONFIG: Mapping[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": [7, 2],
}


MADE = Manifest(
    schema_version=SCHEMA_VERSION,
    model="made-up",
    origin=Origin("hub", "someone/made-up", revision="abc123", adapter="polite"),
    target="cpu",
    runtime="ort",
    precision="int4",
    context_length=64,
    config=CONFIG,
    states=list_states(parse_config(CONFIG)),
    quantization=(StoredTensor("model.embed_tokens.weight", 4, 32, "large"),),
    made_with={"numpy": "2.0"},
    notes=("tie_word_embeddings = true",),
    files={},
)


FILES: Mapping[str, bytes] = {
    GRAPH: b"graph",
    WEIGHTS: bytes(range(256)) * 4,
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
}


def write(path: Path, *, overwrite: bool = False, files: Mapping[str, bytes] = FILES) -> None:
    with writing_bundle(path, overwrite) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        seal(folder, MADE)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refuse(path: Path) -> str:
    """The message with which a bundle is refused, in one line."""
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
