from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from lfm2_deploy.checkpoint import open_checkpoint, tensor_file
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import (
    CheckpointError,
    ConfigError,
    SourceError,
    UnsupportedModelError,
)

Tensors = dict[str, FloatArray]
Save = Callable[..., Path]
ReadAll = Callable[..., Tensors]
EMBEDDING, NORM = "model.embed_tokens.weight", "model.embedding_norm.weight"
EXPERT = "model.layers.1.feed_forward.experts"


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_single_file_reads_every_tensor(
    tiny_moe: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    tensors = read_all(tiny_moe)
    opened = open_checkpoint(str(save_model(tiny_moe.raw_config, tensors, "my-model")))
    assert same(read_all(opened), tensors)
    assert opened.origin == Origin(kind="folder", name="my-model")
    assert opened.config == tiny_moe.config
    assert opened.raw_config == tiny_moe.raw_config


def test_shards_read_as_one(
    tiny_moe: SyntheticCheckpoint, read_all: ReadAll, save_shards: Save
) -> None:
    tensors = read_all(tiny_moe)
    folder = save_shards(tiny_moe.raw_config, tensors)
    assert same(read_all(open_checkpoint(str(folder))), tensors)


def test_fused_experts_read_as_per_expert(
    tiny_moe: SyntheticCheckpoint,
    read_all: ReadAll,
    save_model: Save,
    fuse: Callable[[Tensors], Tensors],
) -> None:
    tensors = read_all(tiny_moe)
    folder = save_model(tiny_moe.raw_config, fuse(tensors))
    assert same(read_all(open_checkpoint(str(folder))), tensors)


def test_one_fused_expert_reads_only_its_bytes(
    tiny_moe: SyntheticCheckpoint,
    read_all: ReadAll,
    save_model: Save,
    fuse: Callable[[Tensors], Tensors],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves = {n: a.astype(np.float16) for n, a in fuse(read_all(tiny_moe)).items()}
    opened = open_checkpoint(str(save_model(tiny_moe.raw_config, halves)))
    sizes: list[int] = []

    def counted(file: Path, offset: int, size: int) -> bytes:
        sizes.append(size)
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    monkeypatch.setattr(tensor_file, "read_bytes", counted)
    for matrix in ("w1", "w2", "w3"):
        sizes.clear()
        opened.read(f"{EXPERT}.5.{matrix}.weight")
        assert sum(sizes) == 64 * 128 * 2


def test_reads_are_fresh_and_writable(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    opened = open_checkpoint(str(save_model(tiny_dense.raw_config, read_all(tiny_dense))))
    before = opened.read(NORM)
    assert before.flags.c_contiguous
    assert before.dtype == np.float32
    before += 1
    assert not np.array_equal(opened.read(NORM), before)


def test_side_files_lists_those_present(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    folder = save_model(tiny_dense.raw_config, read_all(tiny_dense))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("")
    (folder / "README.md").write_text("")
    files = open_checkpoint(str(folder)).side_files
    assert set(files) == {"tokenizer.json", "chat_template.jinja"}
    assert files["tokenizer.json"] == folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({NORM: None}, rf"1 problem: {NORM} is missing, expected \[128\]; check"),
        ({NORM: np.ones(64, np.float32)}, rf"{NORM} in model.* is \[64\], expected \[128\]"),
        ({"extra": np.ones(1, np.float32)}, "extra in model.safetensors is not part of"),
        ({NORM: np.ones(128, np.int8)}, rf"{NORM} in .* is I8, expected F32, F16, BF16"),
        ({f"{EXPERT}.3.w2.weight": None}, rf"{EXPERT}.3.w2.weight is missing"),
        (
            {f"{EXPERT}.{e}.w1.weight": None for e in range(8)},
            r"8 problems: .*0\.w1.* is missing.*1\.w1.*2\.w1\.weight[^;]*; and 5 more; check",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tiny_moe: SyntheticCheckpoint,
    read_all: ReadAll,
    save_model: Save,
    change: dict[str, Any],
    expected: str,
) -> None:
    changed = read_all(tiny_moe) | change
    tensors = {name: array for name, array in changed.items() if array is not None}
    folder = save_model(tiny_moe.raw_config, tensors)
    with pytest.raises(CheckpointError, match=expected) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_misshaped_fused_tensor_is_named_once(
    tiny_moe: SyntheticCheckpoint,
    read_all: ReadAll,
    save_model: Save,
    fuse: Callable[[Tensors], Tensors],
) -> None:
    tensors = fuse(read_all(tiny_moe))
    tensors[f"{EXPERT}.down_proj"] = tensors[f"{EXPERT}.down_proj"][:7].copy()
    folder = save_model(tiny_moe.raw_config, tensors)
    expected = rf"1 problem: {EXPERT}.down_proj .* is \[7, 128, 64\], expected \[8, 128, 64\]"
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(str(folder))


def test_both_layouts_at_once_is_refused(
    tiny_moe: SyntheticCheckpoint,
    read_all: ReadAll,
    save_model: Save,
    fuse: Callable[[Tensors], Tensors],
) -> None:
    tensors = read_all(tiny_moe)
    folder = save_model(tiny_moe.raw_config, tensors | fuse(tensors))
    with pytest.raises(CheckpointError, match=r"experts.0.w1.weight in .* is not part of this"):
        open_checkpoint(str(folder))


def test_eight_bit_float_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in read_all(tiny_dense).items()}
    folder = save_model(tiny_dense.raw_config, {})
    tensors[NORM] = tensors[NORM].to(torch.float8_e4m3fn)
    save_torch_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{NORM} in .* is F8_E4M3, expected F32"):
        open_checkpoint(str(folder))


def test_tied_model_ignores_equal_head(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    tensors = read_all(tiny_dense)
    folder = save_model(tiny_dense.raw_config, tensors | {"lm_head.weight": tensors[EMBEDDING]})
    opened = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight'"):
        opened.read("lm_head.weight")


@pytest.mark.parametrize("rows", [511, 512])
def test_tied_model_refuses_another_head(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save, rows: int
) -> None:
    head = np.ones((rows, 128), np.float32)
    folder = save_model(tiny_dense.raw_config, read_all(tiny_dense) | {"lm_head.weight": head})
    with pytest.raises(CheckpointError, match=r"lm_head.weight"):
        open_checkpoint(str(folder))


def test_untied_model_needs_and_reads_its_head(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    raw = dict(tiny_dense.raw_config) | {"tie_word_embeddings": False}
    tensors = read_all(tiny_dense)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing"):
        open_checkpoint(str(save_model(raw, tensors, "without")))
    head = np.ones((512, 128), np.float32)
    opened = open_checkpoint(str(save_model(raw, tensors | {"lm_head.weight": head}, "with")))
    np.testing.assert_array_equal(opened.read("lm_head.weight"), head)


def test_nan_is_found_on_reading(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    tensors = read_all(tiny_dense)
    tensors[NORM][3] = np.nan
    opened = open_checkpoint(str(save_model(tiny_dense.raw_config, tensors)))
    with pytest.raises(CheckpointError, match=rf"{NORM} in .*model.safetensors holds NaN"):
        opened.read(NORM)
    assert opened.read(EMBEDDING).shape == (512, 128)


def test_absent_shard_is_named(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_shards: Save
) -> None:
    folder = save_shards(tiny_dense.raw_config, read_all(tiny_dense))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"lacks 1 of 2 files .* model-00002-of-00002"):
        open_checkpoint(str(folder))


def test_shards_without_index_ask_for_it(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_shards: Save
) -> None:
    folder = save_shards(tiny_dense.raw_config, read_all(tiny_dense))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(SourceError, match=r"but no model.safetensors.index.json"):
        open_checkpoint(str(folder))


def test_tensor_in_two_shards_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_shards: Save
) -> None:
    tensors = read_all(tiny_dense)
    folder = save_shards(tiny_dense.raw_config, tensors)
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"is in both model-00001.* and model-00002"):
        open_checkpoint(str(folder))


def test_stale_index_beside_single_file_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_shards: Save
) -> None:
    tensors = read_all(tiny_dense)
    folder = save_shards(tiny_dense.raw_config, tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SourceError, match=r"holds both .* remove the one"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", "is not readable JSON"),
        ("[" * 200_000, "is not readable JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"weight_map": {"a": 1}}', "is not a safetensors index"),
        ('{"weight_map": {}}', "names no file"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "names '../b.safetensors'"),
    ],
)
def test_unusable_index_is_refused(
    tiny_dense: SyntheticCheckpoint, tmp_path: Path, index: str, expected: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_dense.raw_config))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SourceError, match=expected):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("pytorch_model.bin", r"only pickled weights \(pytorch_model.bin\).*safetensors"),
        ("weights.safetensors", "rename a single file to model.safetensors"),
        ("notes.txt", "holds no weights: expected model.safetensors or"),
    ],
)
def test_folder_without_weights_says_what_to_do(
    tiny_dense: SyntheticCheckpoint, tmp_path: Path, file: str, expected: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_dense.raw_config))
    (tmp_path / file).touch()
    with pytest.raises(SourceError, match=expected):
        open_checkpoint(str(tmp_path))


def test_vision_checkpoint_is_refused(tiny_dense: SyntheticCheckpoint, tmp_path: Path) -> None:
    raw = {"model_type": "lfm2_vl", "text_config": dict(tiny_dense.raw_config)}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModelError, match=r"vision-language .*'lfm2_vl'.* --part text"):
        open_checkpoint(str(tmp_path))


def test_adapter_folder_as_model_is_explained(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="is a LoRA adapter, not a model"):
        open_checkpoint(str(tmp_path))


def test_empty_folder_asks_for_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no config\.json in {tmp_path}: "):
        open_checkpoint(str(tmp_path))


def test_remote_code_is_never_run(
    tiny_dense: SyntheticCheckpoint, read_all: ReadAll, save_model: Save
) -> None:
    raw = dict(tiny_dense.raw_config) | {"auto_map": {"AutoModel": "evil.Model"}}
    folder = save_model(raw, read_all(tiny_dense))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert open_checkpoint(str(folder)).raw_config["auto_map"]
