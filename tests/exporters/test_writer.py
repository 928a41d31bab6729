"""Where each initializer lies in the weights file, and what is written there."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from exporters.weight_book import Declared, Slot, WeightBook
from exporters.writer import lay_out, refer_to_file, write_weights
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import CheckpointError, ExportError

NORM = "model.layers.0.operator_norm.weight"
CONV = "model.layers.0.conv.conv.weight"
PAGE = 4096


@pytest.fixture
def graph() -> ir.Graph:
    return ir.Graph([], [], nodes=[])


@pytest.fixture
def book() -> WeightBook:
    return WeightBook()


def write(book: WeightBook, checkpoint: Checkpoint, path: Path) -> dict[str, int]:
    offsets = lay_out(book)
    write_weights(book, offsets, checkpoint, path, lambda what, done, total: None)
    return offsets


def test_initializers_begin_on_pages_in_the_order_they_were_declared(
    book: WeightBook, graph: ir.Graph
) -> None:
    book.declare(graph, "a", (1025,))  # 4,100 bytes: two pages
    book.declare(graph, "b", (3, 5), ir.DataType.UINT8)
    book.declare(graph, "table", (15,), ir.DataType.UINT8, alias_of="b")
    book.declare(graph, "c", (1024,))
    book.declare(graph, "d", (2,), ir.DataType.FLOAT16)
    offsets = lay_out(book)
    assert offsets == {"a": 0, "b": 2 * PAGE, "table": 2 * PAGE, "c": 3 * PAGE, "d": 4 * PAGE}


@pytest.mark.parametrize(
    ("dtype", "size"), [(ir.DataType.FLOAT, 24), (ir.DataType.FLOAT16, 12), (ir.DataType.UINT8, 6)]
)
def test_size_is_of_the_dtype_and_shape(dtype: ir.DataType, size: int) -> None:
    assert Declared("any", dtype, (2, 3)).size_bytes == size


def test_second_declaration_gives_the_first_value(book: WeightBook, graph: ir.Graph) -> None:
    assert book.declare(graph, "a", (2,)) is book.declare(graph, "a", (2,))
    assert book.constant_ints(graph, [0, -1]) is book.constant_ints(graph, (0, -1))
    assert list(graph.initializers) == ["a", "ints.0_-1"]


def test_jobs_write_wholes_and_slices_where_they_belong(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    book.declare(graph, "stack", (3, 64))
    book.declare(graph, "half", (64,), ir.DataType.FLOAT16)
    for index in (2, 0, 1):
        book.fill([NORM], lambda w, n=index: [w * (n + 1)], Slot("stack", index))
    book.fill([NORM, CONV], lambda a, b: [(a + b[:, 0, 0]).astype(np.float16)], Slot("half"))
    offsets = write(book, checkpoint, tmp_path / "weights")
    refer_to_file(book, offsets, "weights")
    for value in book.values.values():
        assert isinstance(value.const_value, ir.ExternalTensor)
        value.const_value.base_dir = tmp_path
    norm = checkpoint.read(NORM)
    stack, half = (book.values[name].const_value for name in ("stack", "half"))
    assert stack is not None
    assert half is not None
    np.testing.assert_array_equal(stack.numpy(), np.stack([norm, 2 * norm, 3 * norm]))
    expected = (norm + checkpoint.read(CONV)[:, 0, 0]).astype(np.float16)
    np.testing.assert_array_equal(half.numpy(), expected)
    assert (tmp_path / "weights").stat().st_size == offsets["half"] + 128


@pytest.mark.parametrize("given", [np.zeros(63, np.float32), np.zeros(64, np.float16)])
def test_array_that_does_not_fit_its_initializer_is_refused(
    book: WeightBook,
    graph: ir.Graph,
    checkpoint: Checkpoint,
    tmp_path: Path,
    given: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> None:
    book.declare(graph, "norm", (64,))
    book.fill([NORM], lambda w: [given], Slot("norm"))
    with pytest.raises(ExportError) as caught:
        write(book, checkpoint, tmp_path / "weights")
    assert f"norm was given {given.dtype}[{given.size}], expected FLOAT[64]" in str(caught.value)


def test_tensor_that_cannot_be_read_stops_the_writing(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    book.declare(graph, "norm", (64,))
    book.fill(["no.such.weight"], lambda w: [w], Slot("norm"))
    with pytest.raises(CheckpointError, match=r"no\.such\.weight"):
        write(book, checkpoint, tmp_path / "weights")


def test_full_disk_is_seen_before_the_first_byte(
    book: WeightBook,
    graph: ir.Graph,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book.declare(graph, "a", (1 << 30,))
    usage = SimpleNamespace(free=1 << 31)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExportError) as caught:
        write(book, checkpoint, tmp_path / "weights")
    assert "2.00 GiB free and the weights need 4.00 GiB" in str(caught.value)
    assert not (tmp_path / "weights").exists()


def test_progress_counts_the_jobs(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    book.declare(graph, "stack", (3, 64))
    for index in range(3):
        book.fill([NORM], lambda w: [w], Slot("stack", index))
    write_weights(
        book,
        lay_out(book),
        checkpoint,
        tmp_path / "weights",
        lambda what, done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
