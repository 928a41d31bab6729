"""What transformers saves is read back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.weights import list_weights

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def build(checkpoint: Checkpoint) -> Any:
    """The transformers model of a checkpoint's config, with random weights everywhere."""
    raw = dict(checkpoint.raw_config)
    model: Any
    if checkpoint.config.moe:
        model = Lfm2MoeForCausalLM(Lfm2MoeConfig(**raw))
    else:
        model = Lfm2ForCausalLM(Lfm2Config(**raw))
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(generator=generator)
    return model


def split(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformers state_dict -> tensors by canonical name."""
    tensors = {}
    for name, tensor in state.items():
        prefix = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(tensor):
                tensors[f"{prefix}.{expert}.w1.weight"] = both[: len(both) // 2]
                tensors[f"{prefix}.{expert}.w3.weight"] = both[len(both) // 2 :]
        elif name.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                tensors[f"{prefix}.{expert}.w2.weight"] = down
        elif name != "lm_head.weight":
            tensors[name] = tensor
    return tensors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["tiny_dense", "tiny_moe"])
@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
def test_saved_model_reads_exactly(
    request: pytest.FixtureRequest, tmp_path: Path, dtype: torch.dtype, kind: str, shard_size: str
) -> None:
    model = build(request.getfixturevalue(kind)).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "200KB")
    opened = open_checkpoint(str(tmp_path))
    expected = split(model.state_dict())
    assert expected.keys() == {spec.name for spec in list_weights(opened.config)}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(opened.read(name), tensor.float().numpy(), err_msg=name)
    assert "generation_config.json" in opened.side_files


def test_synthetic_shape_is_what_transformers_builds(tiny_moe: SyntheticCheckpoint) -> None:
    shapes = {name: tuple(t.shape) for name, t in split(build(tiny_moe).state_dict()).items()}
    assert shapes == {spec.name: spec.shape for spec in list_weights(tiny_moe.config)}
