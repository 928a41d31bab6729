from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.adapter import read_adapter
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import CheckpointError, SourceError

Tensors = dict[str, FloatArray]
SaveAdapter = Callable[..., Path]
MODEL = "synthetic:tiny-moe"
QUERY = "model.layers.1.self_attn.q_proj"
GATE = "model.layers.1.feed_forward.gate"
EXPERT = "model.layers.1.feed_forward.experts.3.w2"


def pair(module: str, rows: int, columns: int, rank: int = 2, infix: str = "") -> Tensors:
    """Both halves of a LoRA pair, under PEFT's names."""
    rng = np.random.default_rng(rows + columns)
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A{infix}.weight": rng.standard_normal((rank, columns), np.float32),
        f"{prefix}.lora_B{infix}.weight": rng.standard_normal((rows, rank), np.float32),
    }


def added(folder: Path, module: str) -> FloatArray:
    """What the adapter adds to a tensor of tiny-moe."""
    merged = open_checkpoint(MODEL, adapter=folder).read(f"{module}.weight")
    difference: FloatArray = merged - open_checkpoint(MODEL).read(f"{module}.weight")
    return difference


@pytest.mark.parametrize(
    ("module", "rows", "columns"), [(QUERY, 128, 128), (GATE, 8, 128), (EXPERT, 128, 64)]
)
@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / np.sqrt(2)),
        ({"alpha_pattern": {"nothing": 2, "q_proj|gate|w2": 6}}, 3.0),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "target_modules": ["x"]}, 4.0),
    ],
)
def test_pair_adds_scaled_product(
    save_adapter: SaveAdapter,
    module: str,
    rows: int,
    columns: int,
    options: dict[str, Any],
    scale: float,
) -> None:
    tensors = pair(module, rows, columns)
    a, b = tensors.values()
    np.testing.assert_allclose(
        added(save_adapter(tensors, **options), module), scale * (b @ a), atol=1e-5
    )


def test_hand_computed_merge_is_exact(save_adapter: SaveAdapter) -> None:
    a, b = np.zeros((2, 128), np.float32), np.zeros((128, 2), np.float32)
    a[1, 5], b[7, 1] = 0.5, 3.0
    names = pair(QUERY, 128, 128)
    difference = added(save_adapter(dict(zip(names, (a, b), strict=True))), QUERY)
    # alpha / r = 8 / 2, so one number changes, by 4 * 3 * 0.5.
    assert difference[7, 5] == pytest.approx(6.0, abs=1e-6)
    assert np.count_nonzero(difference) == 1


def test_rank_pattern_gives_a_module_its_own_rank(save_adapter: SaveAdapter) -> None:
    tensors = pair(QUERY, 128, 128, rank=4) | pair(GATE, 8, 128)
    folder = save_adapter(tensors, rank_pattern={r"layers\.1\.self_attn\.q_proj": 4})
    a, b, *_ = tensors.values()
    np.testing.assert_allclose(added(folder, QUERY), 2.0 * (b @ a), atol=1e-5)


def test_default_in_names_is_understood(save_adapter: SaveAdapter) -> None:
    tensors = pair(QUERY, 128, 128, infix=".default")
    a, b = tensors.values()
    np.testing.assert_allclose(added(save_adapter(tensors), QUERY), 4.0 * (b @ a), atol=1e-5)


def test_all_but_the_named_tensors_pass_through(
    save_adapter: SaveAdapter, tiny_moe: SyntheticCheckpoint
) -> None:
    opened = open_checkpoint(MODEL, adapter=save_adapter(pair(QUERY, 128, 128)))
    assert opened.origin == Origin("synthetic", "tiny-moe", "0", adapter="my-adapter")
    assert opened.config == tiny_moe.config
    assert opened.raw_config == tiny_moe.raw_config
    assert not opened.side_files
    name = "model.layers.0.conv.conv.weight"
    np.testing.assert_array_equal(opened.read(name), tiny_moe.read(name))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "lora_only"}, "sets bias to 'lora_only'"),
        ({"bias": False}, "sets bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["feed_forward.experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights to 'pissa_niter_4'"),
        ({"of_a_later_version": 3}, "of_a_later_version"),
    ],
)
def test_options_that_change_the_sum_are_refused(
    save_adapter: SaveAdapter, options: dict[str, Any], expected: str
) -> None:
    folder = save_adapter(pair(QUERY, 128, 128), **options)
    with pytest.raises(CheckpointError, match=f"{expected}.*merge_and_unload"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (pair("model.layers.9.self_attn.q_proj", 128, 128), "layers.9.* is not part of this"),
        (pair("lm_head", 512, 128), "lm_head.weight is not part of this model"),
        (pair(QUERY, 64, 128), r"A \[2, 128\] and B \[64, 2\], expected .* B \[128, 2\]"),
        (pair(QUERY, 128, 128, rank=3), r"A \[3, 128\] .* expected A \[2, 128\]"),
        (pair("model.embed_tokens", 512, 128), "is of kind 'embedding', expected one of"),
        (pair("model.layers.0.conv.conv", 128, 3), "is of kind 'conv'"),
    ],
)
def test_pair_that_does_not_fit_is_named(
    save_adapter: SaveAdapter, tensors: Tensors, expected: str
) -> None:
    folder = save_adapter(tensors)
    with pytest.raises(CheckpointError, match=f"does not fit tiny-moe.*{expected}"):
        open_checkpoint(MODEL, adapter=folder)


@pytest.mark.parametrize("half", ["A", "B"])
def test_missing_half_is_named(save_adapter: SaveAdapter, half: str) -> None:
    tensors = {k: v for k, v in pair(QUERY, 128, 128).items() if f"lora_{half}" not in k}
    with pytest.raises(CheckpointError, match=f"lacks lora_{half} of {QUERY}"):
        read_adapter(save_adapter(tensors))


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"base_model.model.{QUERY}.lora_magnitude_vector",
        "base_model.model.model.layers.1.feed_forward.experts.lora_A",
        f"{QUERY}.weight",
    ],
)
def test_tensor_that_is_no_half_is_named(save_adapter: SaveAdapter, key: str) -> None:
    folder = save_adapter(pair(QUERY, 128, 128) | {key: np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=f"{key}, which is not half of a LoRA pair"):
        read_adapter(folder)


def test_integer_tensor_is_refused(save_adapter: SaveAdapter) -> None:
    tensors = {name: array.astype(np.int8) for name, array in pair(QUERY, 128, 128).items()}
    with pytest.raises(CheckpointError, match="is I8, expected F32"):
        read_adapter(save_adapter(tensors))


def test_adapter_without_tensors_is_refused(save_adapter: SaveAdapter) -> None:
    with pytest.raises(CheckpointError, match="holds no LoRA tensors"):
        read_adapter(save_adapter({}))


@pytest.mark.parametrize(
    "options",
    [
        *({"r": 0}, {"r": None}, {"lora_alpha": "x"}, {"rank_pattern": {"(": 1}}),
        *({"r": float("inf")}, {"lora_alpha": 10**400}, {"rank_pattern": {"(" * 5000: 1}}),
    ],
)
def test_unusable_rank_or_alpha_is_refused(
    save_adapter: SaveAdapter, options: dict[str, Any]
) -> None:
    folder = save_adapter(pair(QUERY, 128, 128), **options)
    with pytest.raises(CheckpointError, match=f"gives no usable rank and alpha for {QUERY}"):
        read_adapter(folder)


def test_nan_in_adapter_is_named(save_adapter: SaveAdapter) -> None:
    tensors = pair(QUERY, 128, 128)
    next(iter(tensors.values()))[0, 0] = np.nan
    opened = open_checkpoint(MODEL, adapter=save_adapter(tensors))
    with pytest.raises(CheckpointError, match=r"q_proj.lora_A.weight in .* holds NaN"):
        opened.read(f"{QUERY}.weight")


def test_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SourceError, match=r"no adapter_config.json in"):
            open_checkpoint(MODEL, adapter=place)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(SourceError, match="holds a list, expected a JSON object"):
        read_adapter(tmp_path)
    for content in ("{", "[" * 200_000):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(SourceError, match="is not readable JSON"):
            read_adapter(tmp_path)


def test_pickled_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(SourceError, match=r"has no adapter_model.safetensors; save"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(SourceError, match="pickled, which is never opened"):
        read_adapter(tmp_path)
