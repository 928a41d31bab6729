"""Text parts of vision and audio checkpoints: every way names were saved, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from lfm2_deploy.checkpoint import describe_model, open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import (
    CheckpointError,
    ConfigError,
    SourceError,
    UnknownOptionError,
    UnsupportedModelError,
)
from lfm2_deploy.weights import EMBEDDING, HEAD, list_weights

Save = Callable[..., Path]
Read = Callable[..., dict[str, FloatArray]]

# How each kind of save calls a text model's tensor.
NAMINGS: Mapping[str, Callable[[str], str]] = {
    "vision": lambda name: name.replace("model.", "model.language_model.", 1),
    "vision, before": lambda name: f"language_model.{name}",
    "audio": lambda name: name.replace("model.", "lfm.", 1),
}
# As in LFM2-VL's and LFM2-Audio's files.
OTHERS: Mapping[str, tuple[str, ...]] = {
    "vision": (
        "model.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.bias",
    ),
    "vision, before": ("vision_tower.x.weight", "multi_modal_projector.linear_1.weight"),
    "audio": (
        "conformer.layers.0.norm_out.weight",
        "audio_adapter.model.1.weight",
        "audio_embedding.embedding.weight",
        "depthformer.layers.0.operator.qkv_proj.weight",
        "depth_linear.weight",
        "depth_embeddings.0.embedding.weight",
        "codebook_offsets",
    ),
}


def wrap_config(naming: str, text: Mapping[str, Any]) -> dict[str, Any]:
    if naming == "audio":
        return {"architectures": ["Lfm2AudioForConditionalGeneration"], "lfm": dict(text)}
    return {"model_type": "lfm2_vl", "text_config": dict(text), "vision_config": {}}


def wrap_tensors(naming: str, tensors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    others = {name: np.full((3,), np.nan, np.float32) for name in OTHERS[naming]}
    return {**{NAMINGS[naming](name): tensor for name, tensor in tensors.items()}, **others}


@pytest.fixture(params=NAMINGS)
def naming(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", ["tiny_dense", "tiny_moe"])
def test_text_part_holds_the_text_models_numbers(
    kind: str, naming: str, request: pytest.FixtureRequest, read_all: Read, save_model: Save
) -> None:
    text: SyntheticCheckpoint = request.getfixturevalue(kind)
    tensors = read_all(text)
    folder = save_model(wrap_config(naming, text.raw_config), wrap_tensors(naming, tensors))
    opened = open_checkpoint(str(folder), part="text")
    assert opened.origin == Origin("folder", "model", part="text")
    assert opened.raw_config["model_type"] == text.config.model_type
    assert {spec.name for spec in list_weights(opened.config)} == set(tensors)
    for name, expected in tensors.items():
        assert np.array_equal(opened.read(name), expected)


def test_what_is_left_out_is_told(
    naming: str, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = wrap_tensors(naming, read_all(tiny_dense))
    folder = save_model(wrap_config(naming, tiny_dense.raw_config), tensors)
    (told,) = [
        note
        for note in open_checkpoint(str(folder), part="text").config.assumptions
        if "only the text part" in note
    ]
    if naming == "audio":
        assert "conformer (1 tensor)" in told
        assert "codebook_offsets" in told
    else:
        assert "vision_tower (1 tensor)" in told
        assert "multi_modal_projector" in told


def test_whole_folder_without_a_part_is_refused_with_its_command(
    naming: str, tiny_dense: SyntheticCheckpoint, save_model: Save
) -> None:
    folder = save_model(wrap_config(naming, tiny_dense.raw_config), {})
    with pytest.raises(UnsupportedModelError, match=f"lfm2-deploy export {folder} --part text"):
        open_checkpoint(str(folder))
    with pytest.raises(UnsupportedModelError, match="--part text"):
        describe_model(str(folder))


@pytest.mark.parametrize(
    "stray", ["model.language_model2.x.weight", "model.layers.0.x", "depthformer.x", "x"]
)
def test_tensor_of_no_known_part_is_refused_by_name(
    stray: str, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = wrap_tensors("vision", read_all(tiny_dense)) | {stray: np.zeros(2, np.float32)}
    folder = save_model(wrap_config("vision", tiny_dense.raw_config), tensors)
    with pytest.raises(CheckpointError, match=rf"tensor {stray} is of no known part .*'lfm2_vl'"):
        open_checkpoint(str(folder), part="text")


def test_tensor_the_text_part_does_not_have_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = wrap_tensors("vision", read_all(tiny_dense))
    tensors["model.language_model.layers.0.extra.weight"] = np.zeros(2, np.float32)
    folder = save_model(wrap_config("vision", tiny_dense.raw_config), tensors)
    with pytest.raises(CheckpointError, match=r"layers.0.extra.weight .* not part of this model"):
        open_checkpoint(str(folder), part="text")


def test_missing_tensor_is_named(
    naming: str, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = read_all(tiny_dense)
    del tensors["model.embedding_norm.weight"]
    folder = save_model(wrap_config(naming, tiny_dense.raw_config), wrap_tensors(naming, tensors))
    with pytest.raises(CheckpointError, match=r"embedding_norm.weight is missing"):
        open_checkpoint(str(folder), part="text")


def test_one_tensor_under_two_names_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = wrap_tensors("vision", read_all(tiny_dense))
    tensors["language_model.model.embedding_norm.weight"] = np.zeros(2, np.float32)
    folder = save_model(wrap_config("vision", tiny_dense.raw_config), tensors)
    with pytest.raises(CheckpointError, match="are the same tensor"):
        open_checkpoint(str(folder), part="text")


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
def test_head_trained_apart_is_read_where_the_whole_model_is_not_tied(
    name: str, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors = wrap_tensors("vision", read_all(tiny_dense))
    head = 2 * tiny_dense.read(EMBEDDING)
    raw = wrap_config("vision", tiny_dense.raw_config) | {"tie_word_embeddings": False}
    folder = save_model(raw, tensors | {name: head})
    assert np.array_equal(open_checkpoint(str(folder), part="text").read(HEAD), head)


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
def test_head_of_a_tied_model_must_be_its_embedding(
    name: str, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    tensors, raw = read_all(tiny_dense), wrap_config("vision", tiny_dense.raw_config)
    same = save_model(raw, wrap_tensors("vision", tensors) | {name: tensors[EMBEDDING]}, "same")
    assert open_checkpoint(str(same), part="text").config.tie_word_embeddings
    other = save_model(raw, wrap_tensors("vision", tensors) | {name: 2 * tensors[EMBEDDING]}, "x")
    with pytest.raises(CheckpointError, match="differs from"):
        open_checkpoint(str(other), part="text")


def test_part_of_a_text_model_is_refused(
    tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    folder = save_model(tiny_dense.raw_config, read_all(tiny_dense))
    with pytest.raises(ConfigError, match="leave --part out"):
        open_checkpoint(str(folder), part="text")
    with pytest.raises(SourceError, match="leave --part out"):
        open_checkpoint("synthetic:tiny-dense", part="text")


def test_unknown_part_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(UnknownOptionError, match="no part 'vision': expected text"):
        open_checkpoint("nowhere/at-all", part="vision")


# From the Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Stands for `snapshot_download` of a repository in memory; notes what was asked for."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / COMMIT

    def __call__(self, model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for file in self.repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                (self.snapshot / file.name).write_bytes(file.read_bytes())
        return str(self.snapshot)


@pytest.fixture
def hub(
    tiny_dense: SyntheticCheckpoint,
    read_all: Read,
    save_model: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> FakeHub:
    """A vision model in three shards, of which one holds the vision tower alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tensors = wrap_tensors("vision", read_all(tiny_dense))
    tower = {name for name in tensors if "vision_tower" in name}
    text = sorted(set(tensors) - tower)
    shards = {"1": text[:9], "2": text[9:], "3": sorted(tower)}
    repository = save_model(wrap_config("vision", tiny_dense.raw_config), {}, "repository")
    (repository / "model.safetensors").unlink()
    weight_map = {}
    for number, names in shards.items():
        part = save_model({}, {name: tensors[name] for name in names}, f"part{number}")
        shard = f"model-0000{number}-of-00003.safetensors"
        (part / "model.safetensors").rename(repository / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    fake = FakeHub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_only_shards_of_the_text_part_are_downloaded(
    hub: FakeHub, tiny_dense: SyntheticCheckpoint
) -> None:
    opened = open_checkpoint("LiquidAI/LFM2-VL-Tiny", part="text")
    assert opened.origin == Origin("hub", "LiquidAI/LFM2-VL-Tiny", COMMIT, part="text")
    assert {file.name for file in hub.snapshot.glob("*.safetensors")} == {
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    }
    assert np.array_equal(opened.read(EMBEDDING), tiny_dense.read(EMBEDDING))


def test_absent_shard_of_the_text_part_is_asked_for_by_name(hub: FakeHub) -> None:
    (hub.repository / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SourceError, match="not complete in the local cache"):
        open_checkpoint("LiquidAI/LFM2-VL-Tiny", part="text")


def test_description_of_a_text_part_needs_no_weights(
    hub: FakeHub, tiny_dense: SyntheticCheckpoint
) -> None:
    config, origin = describe_model("LiquidAI/LFM2-VL-Tiny", part="text")
    assert config.hidden_size == tiny_dense.config.hidden_size
    assert origin.part == "text"
    assert not list(hub.snapshot.glob("*.safetensors"))


def test_text_part_in_one_file_is_downloaded_whole(
    hub: FakeHub, tiny_dense: SyntheticCheckpoint, read_all: Read, save_model: Save
) -> None:
    whole = save_model({}, wrap_tensors("vision", read_all(tiny_dense)), "single")
    for file in hub.repository.glob("model*"):
        file.unlink()
    (whole / "model.safetensors").rename(hub.repository / "model.safetensors")
    opened = open_checkpoint("LiquidAI/LFM2-VL-Tiny", part="text")
    assert np.array_equal(opened.read(EMBEDDING), tiny_dense.read(EMBEDDING))
