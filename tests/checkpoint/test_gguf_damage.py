"""Damaged, hostile and foreign GGUF files: one line, and no memory for what they claim."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import open_synthetic
from lfm2_deploy.errors import (
    CheckpointError,
    ConfigError,
    Lfm2DeployError,
    SourceError,
    UnsupportedModelError,
)

from ..gguf_files import write_gguf  # noqa: TID252

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A file of tiny random weights; options as `write_gguf` takes them."""

    def make(kind: str = "dense", name: str = "model.gguf", **options: Any) -> Path:
        return write_gguf(open_synthetic(f"tiny-{kind}"), tmp_path / name, **options)

    return make


def refuse(file: Path, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        open_checkpoint(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_file_is_told(write: Write, tmp_path: Path) -> None:
    whole = write().read_bytes()
    file = tmp_path / "cut.gguf"
    # The header takes about 2,500 bytes: all its fields are cut somewhere.
    for size in (*range(0, 4000, 37), len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"truncated|is not a GGUF file"):
            open_checkpoint(str(file))


def test_flipped_bytes_raise_nothing_else(write: Write, tmp_path: Path) -> None:
    whole = write("moe").read_bytes()
    file, rng = tmp_path / "flipped.gguf", np.random.default_rng(0)
    refused = []
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, 3000, 3):
            damaged[place] = rng.integers(0, 256)
        file.write_bytes(damaged)
        try:
            open_checkpoint(str(file))
        except Lfm2DeployError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert not any("\n" in line for line in refused)


def header(fields: bytes, count: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + fields


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


HOSTILE = {
    "fields": header(b"", count=2**62),
    "tensors": header(b"", count=0, tensors=2**40),
    "text": header(field(b"a", 8, struct.pack("<Q", 2**61) + b"x")),
    "texts": header(field(b"a", 9, struct.pack("<IQ", 8, 2**60))),
    "bytes": header(field(b"a", 9, struct.pack("<IQ", 0, 2**63))),
    "numbers": header(field(b"a", 9, struct.pack("<IQ", 10, 2**61))),
    "arrays": header(field(b"a", 9, struct.pack("<IQ", 9, 4))),
    "kind": header(field(b"a", 77, b"")),
    "name": header(struct.pack("<Q", 2**50)),
    "not utf-8": header(field(b"\xff\xfe", 4, b"1234")),
    "alignment": header(field(b"general.alignment", 4, struct.pack("<I", 0))),
    "type": header(struct.pack("<Q1sIQIQ", 1, b"a", 1, 32, 999, 0), count=0, tensors=1),
    "dimensions": header(struct.pack("<Q1sI", 1, b"a", 2**31), count=0, tensors=1),
    "sizes": header(struct.pack("<Q1sIQQQQIQ", 1, b"a", 4, *[2**62] * 4, 0, 0), count=0, tensors=1),
    "nothing": header(struct.pack("<Q1sIQIQ", 1, b"a", 1, 0, 0, 0), count=0, tensors=1),
    "blocks": header(struct.pack("<Q1sIQIQ", 1, b"a", 1, 33, 2, 0), count=0, tensors=1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_absurd_claim_takes_no_memory(tmp_path: Path, what: str) -> None:
    file = tmp_path / "hostile.gguf"
    # Room for what is claimed must be looked for, not only an end of the file waited for.
    file.write_bytes(HOSTILE[what] + bytes(1 << 16))
    open_checkpoint("synthetic:tiny-dense")
    tracemalloc.start()
    refuse(file, CheckpointError, "corrupt or truncated header|is truncated")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The first use of the gguf package takes 4 MB.
    assert most < 16 << 20


def test_large_file_that_claims_a_large_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sparse.gguf"
    with file.open("wb") as stream:
        stream.write(header(field(b"a", 9, struct.pack("<IQ", 0, 2**34))))
        stream.truncate(2**35)  # a hole: takes no room on the disk
    refuse(file, CheckpointError, "17,179,869,184 entries are claimed")


def test_file_of_another_kind_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for data, told in (
        (b"PK\x03\x04" * 20, "is not a GGUF file"),
        (header(b"", version=1), "GGUF version 1, expected one of 2, 3"),
        (header(b"", version=3 << 24), r"version 50331648 \(of big-endian machines\)"),
    ):
        file.write_bytes(data)
        refuse(file, SourceError, told)


def test_part_of_a_split_file_is_refused_by_name_or_by_key(write: Write) -> None:
    part = write(name="model-00001-of-00003.gguf")
    refuse(part, SourceError, "is part 1 of 3; join them .*llama-gguf-split --merge")
    renamed = write(name="renamed.gguf", metadata={"split.count": 3})
    refuse(renamed, SourceError, "is one of 3 parts; join them")


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ("llama", "has architecture 'llama': expected 'lfm2' or 'lfm2moe'"),
        ("clip", r"is a vision or audio encoder \(mmproj\).*pass the model's own file"),
    ],
)
def test_other_architecture_is_named(write: Write, architecture: str, told: str) -> None:
    refuse(write(architecture=architecture), UnsupportedModelError, told)


@pytest.mark.parametrize(
    ("metadata", "error", "told"),
    [
        ({"lfm2.block_count": None}, ConfigError, "has no 'num_hidden_layers'"),
        ({"lfm2.block_count": 3}, ConfigError, "num_hidden_layers says 3"),
        ({"lfm2.embedding_length": 2**31}, ConfigError, "hidden_size is above"),
        ({"lfm2.rope.freq_base": "x"}, ConfigError, "rope_theta is 'x'"),
        ({"lfm2.rope.scaling.type": "yarn"}, UnsupportedModelError, "rope_scaling is 'yarn'"),
        ({"lfm2.attention.sliding_window": 32}, UnsupportedModelError, "sliding_window is 32"),
        ({"lfm2.attention.causal": False}, UnsupportedModelError, "looks both ways"),
        ({"lfm2.attention.head_count_kv": 2}, ConfigError, "not a list of a number for each"),
        ({"lfm2.attention.head_count_kv": [1, 0, 2]}, UnsupportedModelError, r"holds \[1, 2\]"),
        ({"tokenizer.ggml.eos_token_id": 2**30}, ConfigError, "eos_token_id is 1073741824"),
        ({"lfm2.vocab_size": None}, ConfigError, "has no 'vocab_size'"),
    ],
)
def test_key_that_makes_no_model_is_named(
    write: Write, metadata: Mapping[str, Any], error: type[Exception], told: str
) -> None:
    refuse(write(metadata=metadata), error, told)


def test_other_gating_of_experts_is_refused(write: Write) -> None:
    file = write("moe", metadata={"lfm2moe.expert_gating_func": 1})
    refuse(file, UnsupportedModelError, r"expert_gating_func is 1, expected 2 \(sigmoid\)")


def test_tensors_that_do_not_fit_are_named(write: Write) -> None:
    def change(tensors: dict[str, Any]) -> None:
        del tensors["blk.0.attn_norm.weight"]
        tensors["blk.0.ffn_norm.weight"] = np.ones(3, np.float32)
        tensors["dense_2.weight"] = np.ones((4, 4), np.float32)

    told = (
        r"3 problems: blk.0.attn_norm.weight is missing, expected \[\d+\]; blk.0.ffn_norm.weight "
        r"is \[3\], expected \[\d+\]; dense_2.weight is not part of this model"
    )
    refuse(write(change=change), CheckpointError, told)


def test_integers_without_a_scale_are_refused(write: Write, tmp_path: Path) -> None:
    whole = write().read_bytes()
    name = b"token_embd_norm.weight"
    place = whole.index(name) + len(name) + 4 + 8
    file = tmp_path / "integers.gguf"
    file.write_bytes(whole[:place] + struct.pack("<I", 26) + whole[place + 4 :])
    refuse(file, CheckpointError, "token_embd_norm.weight is I32, which the gguf package does not")


def test_file_that_shrinks_after_it_was_opened_is_told(write: Write) -> None:
    file = write()
    found = open_checkpoint(str(file))
    with file.open("r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(CheckpointError, match=r"is truncated: wanted \d+ bytes"):
        found.read("model.embedding_norm.weight")


def test_file_that_cannot_be_read_is_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write()

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)"):
        open_checkpoint(str(file))
