from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lfm2_deploy.checkpoint import tensor_file
from lfm2_deploy.checkpoint.tensor_file import (
    identify_files,
    read_floats,
    read_header,
    require_finite,
)
from lfm2_deploy.errors import CheckpointError

WriteRaw = Callable[..., Path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_dtype_reads_exactly(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "_CHUNK", 5)
    tensor = torch.randn(3, 7).to(dtype)
    save_file({"other": torch.ones(4), "t": tensor}, tmp_path / "f.safetensors")
    stored = read_header(tmp_path / "f.safetensors")["t"]
    values = read_floats(stored, 0, 21)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, tensor.float().flatten().numpy())


def test_run_of_elements_reads_only_those(tmp_path: Path) -> None:
    save_file({"t": torch.arange(20.0).bfloat16()}, tmp_path / "f.safetensors")
    stored = read_header(tmp_path / "f.safetensors")["t"]
    assert read_floats(stored, 7, 3).tolist() == [7, 8, 9]


def test_missing_end_of_data_names_tensor(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    save_file({"t": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"truncated: t should end at byte .* download"):
        read_header(file)


@pytest.mark.parametrize("kept", [0, 5, 20])
def test_file_cut_in_header_says_truncated(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "f.safetensors"
    save_file({"t": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(file)


def test_file_shortened_after_opening_says_truncated(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    save_file({"t": torch.ones(100)}, file)
    stored = read_header(file)["t"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"truncated: wanted 400 bytes at .*, got 396"):
        read_floats(stored, 0, 100)


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[]",
        b"\xff\xfe",
        {"t": 3},
        {"t": {"dtype": "F32", "shape": [1]}},
        {"t": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"t": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        b'{"t": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        b'{"t": ' + b"9" * 5000 + b"}",
    ],
)
def test_corrupt_header_is_named(tmp_path: Path, write_raw: WriteRaw, header: object) -> None:
    file = write_raw(tmp_path / "f.safetensors", header, b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"f.safetensors has a corrupt header"):
        read_header(file)


def test_git_lfs_pointer_says_how_to_get_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(file)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_not_finite_are_counted(bad: float) -> None:
    values = np.ones((2, 3), np.float32)
    require_finite(values, "t")
    values[1, 1] = bad
    with pytest.raises(CheckpointError, match="t holds NaN or infinity in 1 of 6 values"):
        require_finite(values, "t")


def test_header_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    header = b"[" * 200_000
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="corrupt header"):
        read_header(file)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(100_000_000, "corrupt header"), (100_000_001, "above the format's limit of 100,000,000")],
)
def test_header_above_the_formats_limit_is_not_read(
    tmp_path: Path, length: int, expected: str
) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(length.to_bytes(8, "little"))
        stream.truncate(length + 100)  # sparse: takes no space
    with pytest.raises(CheckpointError, match=expected):
        read_header(file)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no time of change of state")
def test_rewritten_file_of_the_same_size_and_time_has_another_identity(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"before")
    status, first = file.stat(), identify_files([file])
    time.sleep(0.02)  # clocks of file systems tick every 4 ms or so
    file.write_bytes(b"after!")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert identify_files([file]) != first
