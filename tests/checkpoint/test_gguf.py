"""GGUF files: tensors, config and small files as those of the checkpoint that they were made of."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lfm2_deploy.checkpoint import describe_model, gguf_numbers, open_checkpoint
from lfm2_deploy.checkpoint.gguf_file import GgufTensor
from lfm2_deploy.checkpoint.gguf_numbers import describe_form, read_rows
from lfm2_deploy.contracts import Origin, StoredForm, TellsForms
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import CheckpointError, RuntimeUnavailableError
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.weights import list_weights

from ..gguf_files import list_tensors, list_tokenizer, quantize, write_gguf  # noqa: TID252

TEXTS = [
    "It's 12345 o'clock, WE'LL see:\n\n\n  tabs\t\tand   spaces ",
    "漢字かな交じり文 кириллица 🙂👩‍🚀 naïve",
    "<|startoftext|><|im_start|>user\nHi<|im_end|>\r\n<|tool_call_start|>[f(a=1)]",
    "",
]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_file_gives_the_config_and_tensors_it_was_made_of(
    checkpoints: Mapping[str, Path], tmp_path: Path, kind: str
) -> None:
    true = open_checkpoint(str(checkpoints[kind]))
    found = open_checkpoint(str(write_gguf(true, tmp_path / "model.gguf")))
    assert replace(found.config, assumptions=()) == replace(true.config, assumptions=())
    for spec in list_weights(true.config):
        read = found.read(spec.name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, true.read(spec.name), spec.name)
    assert found.origin == Origin("file", "model.gguf")
    assert describe_model(str(tmp_path / "model.gguf")) == (found.config, found.origin)


def test_what_no_key_says_is_an_assumption(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    true = open_checkpoint(str(checkpoints["moe"]))
    file = write_gguf(true, tmp_path / "a.gguf", metadata={"lfm2moe.expert_weights_scale": None})
    config = open_checkpoint(str(file)).config
    assert config.moe is not None
    assert config.moe.routed_scaling_factor == 1.0
    assert [line.partition(" ")[0] for line in config.assumptions] == [
        "norm_topk_prob", "routed_scaling_factor"
    ]  # fmt: skip


def test_key_of_the_experts_weights_is_followed(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    true = open_checkpoint(str(checkpoints["moe"]))
    file = write_gguf(true, tmp_path / "a.gguf", metadata={"lfm2moe.expert_weights_norm": False})
    config = open_checkpoint(str(file)).config
    assert config.moe is not None
    assert not config.moe.norm_topk_prob
    assert not config.assumptions


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "F16", "BF16"])
def test_rounded_tensor_is_what_the_gguf_package_makes_of_it(
    checkpoints: Mapping[str, Path], tmp_path: Path, kind: str
) -> None:
    true = open_checkpoint(str(checkpoints["moe"]))
    found = open_checkpoint(str(write_gguf(true, tmp_path / "model.gguf", kind)))
    for name in ("model.embed_tokens.weight", "model.layers.3.feed_forward.experts.5.w2.weight"):
        stored = quantize(true.read(name), kind)
        expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(found.read(name), expected.astype(np.float32))
    assert isinstance(found, TellsForms)
    assert found.stored_as(name) == describe_form(kind)
    assert found.stored_as("model.embedding_norm.weight") == StoredForm("F32", 32, 0)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS"])
def test_rows_of_wide_blocks_are_read_from_their_place(tmp_path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    data = np.random.default_rng(0).integers(0, 64, (6, 2 * size), np.uint8)
    (tmp_path / "data").write_bytes(b"12345" + data.tobytes())
    tensor = GgufTensor("x", kind, (2, 3, 2 * block), 5, block, size)
    expected = gguf.quants.dequantize(data, number)
    np.testing.assert_array_equal(read_rows(tmp_path / "data", tensor, 2, 3), expected[2:5])


def test_one_expert_reads_no_bytes_of_others(
    checkpoints: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = open_checkpoint(str(checkpoints["moe"]))
    found = open_checkpoint(str(write_gguf(true, tmp_path / "model.gguf", "Q8_0")))
    read, sizes = gguf_numbers.read_bytes, []

    def count(file: Path, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read(file, offset, size)

    monkeypatch.setattr(gguf_numbers, "read_bytes", count)
    found.read("model.layers.3.feed_forward.experts.5.w1.weight")
    assert sum(sizes) == 96 * 128 // 32 * 34


def test_joined_query_key_and_value_are_taken_apart(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    true = open_checkpoint(str(checkpoints["dense"]))

    def join(tensors: dict[str, Any]) -> None:
        for layer in true.config.attention_layers:
            parts = [tensors.pop(f"blk.{layer}.attn_{letter}.weight") for letter in "qkv"]
            tensors[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(parts)

    found = open_checkpoint(str(write_gguf(true, tmp_path / "model.gguf", change=join)))
    for letter in "qkv":
        name = f"model.layers.1.self_attn.{letter}_proj.weight"
        np.testing.assert_array_equal(found.read(name), true.read(name))


def test_head_of_its_own_is_not_tied(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    true = open_checkpoint(str(checkpoints["dense"]))
    head = 2 * list_tensors(true)["token_embd.weight"]
    file = write_gguf(
        true, tmp_path / "a.gguf", change=lambda tensors: tensors.update({"output.weight": head})
    )
    found = open_checkpoint(str(file))
    assert not found.config.tie_word_embeddings
    np.testing.assert_array_equal(found.read("lm_head.weight"), head)


def test_unknown_tensor_and_nan_are_refused(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    true = open_checkpoint(str(checkpoints["dense"]))

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["token_embd_norm.weight"] = np.full(128, np.nan, np.float32)

    found = open_checkpoint(str(write_gguf(true, tmp_path / "a.gguf", change=spoil)))
    with pytest.raises(CheckpointError, match="has no tensor 'x'"):
        found.read("x")
    with pytest.raises(CheckpointError, match=r"embedding_norm.*holds NaN or infinity in 128"):
        found.read("model.embedding_norm.weight")


@pytest.fixture(scope="module")
def demo_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with the demo model's tokens and LFM2's rule, and a token not special."""
    raw = json.loads((DEMO_MODEL / "tokenizer.json").read_text("utf-8"))
    words = (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    level = {**raw["pre_tokenizer"], "use_regex": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    raw["added_tokens"][5]["special"] = False
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(raw))
    return file


def open_with(
    checkpoints: Mapping[str, Path], tmp_path: Path, tokenizer: Path, rule: str, **other: Any
) -> Any:
    true = open_checkpoint(str(checkpoints["dense"]))
    metadata = list_tokenizer(tokenizer, 4200, rule) | {"lfm2.vocab_size": 4200} | other

    def widen(tensors: dict[str, Any]) -> None:
        tensors["token_embd.weight"] = np.ones((4200, 128), np.float32)

    return open_checkpoint(
        str(write_gguf(true, tmp_path / "a.gguf", metadata=metadata, change=widen))
    )


@pytest.mark.parametrize("rule", ["lfm2", "gpt-2"])
def test_tokenizer_gives_the_same_ids(
    checkpoints: Mapping[str, Path], tmp_path: Path, demo_like: Path, rule: str
) -> None:
    file = demo_like if rule == "lfm2" else DEMO_MODEL / "tokenizer.json"
    found = open_with(checkpoints, tmp_path, file, rule)
    true, made = (
        Tokenizer.from_folder(p.parent) for p in (file, found.side_files["tokenizer.json"])
    )
    for text in TEXTS:
        for special in (True, False):
            ids = true.encode(text, add_special_tokens=special)
            assert made.encode(text, add_special_tokens=special) == ids
            assert made.decode(ids) == true.decode(ids)
    assert made.vocab_size == true.vocab_size
    assert made.added_tokens == true.added_tokens
    assert made.special_ids == true.special_ids
    assert made.special_tokens["eos_token"] == "<|im_end|>"


def test_tokenizer_without_a_start_token_adds_none(
    checkpoints: Mapping[str, Path], tmp_path: Path, demo_like: Path
) -> None:
    other = {"tokenizer.ggml.add_bos_token": False}
    found = open_with(checkpoints, tmp_path, demo_like, "lfm2", **other)
    made = Tokenizer.from_folder(found.side_files["tokenizer.json"].parent)
    assert made.encode("a", add_special_tokens=True) == made.encode("a", add_special_tokens=False)


def test_word_that_merges_do_not_reach_stays_whole(
    checkpoints: Mapping[str, Path], tmp_path: Path, demo_like: Path
) -> None:
    raw = json.loads(demo_like.read_text())
    # No merge leads to it, so that only a tokenizer that asks for whole words first can use it.
    raw["model"]["vocab"]["Ġzyzzyva"] = 4096
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(raw))
    found = open_with(checkpoints, tmp_path, file, "lfm2")
    made = Tokenizer.from_folder(found.side_files["tokenizer.json"].parent)
    assert made.encode(" zyzzyva", add_special_tokens=False) == [4096]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"tokenizer.ggml.pre": "qwen2"}, "cuts words by rule 'qwen2': expected 'lfm2'"),
        ({"tokenizer.ggml.model": "llama"}, "is of kind 'llama', expected 'gpt2'"),
        ({"tokenizer.ggml.token_type": [1]}, "does not tell the kind of each token"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merges 3 parts, expected 2"),
        ({"tokenizer.ggml.merges": ["a zzzz"]}, "holds a damaged tokenizer"),
        ({"tokenizer.ggml.merges": None}, "no list of tokens or of merges"),
    ],
)
def test_tokenizer_that_cannot_be_made_is_one_line(
    checkpoints: Mapping[str, Path],
    tmp_path: Path,
    demo_like: Path,
    other: dict[str, Any],
    told: str,
) -> None:
    found = open_with(checkpoints, tmp_path, demo_like, "lfm2", **other)
    with pytest.raises(CheckpointError, match=told) as caught:
        _ = found.side_files
    assert "a.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_files_go_with_the_checkpoint(
    checkpoints: Mapping[str, Path], tmp_path: Path, demo_like: Path
) -> None:
    other = {
        "tokenizer.chat_template": "{{ bos_token }}é\n",
        "general.sampling.temp": 0.3,
        "general.sampling.min_p": 0.15,
    }
    found = open_with(checkpoints, tmp_path, demo_like, "lfm2", **other)
    files = found.side_files
    assert files["chat_template.jinja"].read_text("utf-8") == "{{ bos_token }}é\n"
    settings = json.loads(files["generation_config.json"].read_text())
    assert settings == {"do_sample": True, "temperature": 0.3, "min_p": 0.15}
    folder = files["tokenizer.json"].parent
    assert folder.is_dir()
    del found, files
    gc.collect()
    assert not folder.exists()


def test_missing_package_says_how_to_get_it(
    checkpoints: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(open_checkpoint(str(checkpoints["dense"])), tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'lfm2-deploy\[gguf\]'"):
        open_checkpoint(str(file))
