"""Where each initializer lies in the weights file, and what is written there."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from exporters.encoding import encode_here
from exporters.journal import Journal
from exporters.quantize.losses import Sums
from exporters.weight_book import Declared, Slot, WeightBook
from exporters.writer import lay_out, refer_to_file, write_weights
from lfm2_deploy.contracts import Checkpoint, Progress, ignore_progress
from lfm2_deploy.errors import CheckpointError, DiskFullError, ExportError

NORM = "model.layers.0.operator_norm.weight"
CONV = "model.layers.0.conv.conv.weight"
PAGE = 4096


@pytest.fixture
def graph() -> ir.Graph:
    return ir.Graph([], [], nodes=[])


@pytest.fixture
def book() -> WeightBook:
    return WeightBook()


def write(
    book: WeightBook, checkpoint: Checkpoint, path: Path, progress: Progress = ignore_progress
) -> dict[str, int]:
    offsets = lay_out(book)
    journal = Journal(path.with_suffix(".jsonl"), "this export")
    write_weights(book, offsets, encode_here(book.jobs, checkpoint), path, journal, progress)
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
    refer_to_file(graph, book, offsets, "weights")
    for value in graph.initializers.values():
        assert isinstance(value.const_value, ir.ExternalTensor)
        value.const_value.base_dir = tmp_path
    norm = checkpoint.read(NORM)
    stack, half = (graph.initializers[name].const_value for name in ("stack", "half"))
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
    with pytest.raises(DiskFullError) as caught:
        write(book, checkpoint, tmp_path / "weights")
    assert "2.00 GiB free and the weights need 4.00 GiB" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_disk_that_fills_up_in_the_middle_keeps_what_was_written(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    stack(book, graph, 3)
    # Files that may not grow are the closest to a full disk that needs no rights.
    with pytest.raises(DiskFullError, match=r"full .* go on with --resume"), _limited(1 << 13):
        write(book, checkpoint, tmp_path / "weights")


@contextmanager
def _limited(size: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def stack(book: WeightBook, graph: ir.Graph, count: int) -> None:
    """Jobs of 4 KiB that fill one initializer with 1, 2, 3, ..."""
    book.declare(graph, "stack", (count, 1024))
    for index in range(count):
        value = np.full(1024, index + 1, np.float32)
        book.fill([NORM], lambda w, value=value: [value], Slot("stack", index))


def test_progress_counts_the_bytes(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    stack(book, graph, 3)
    write(book, checkpoint, tmp_path / "w", lambda what, done, total: seen.append((done, total)))
    assert seen == [(0, 12288), (4096, 12288), (8192, 12288), (12288, 12288)]


def test_interrupted_writing_goes_on_where_it_was(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    stack(book, graph, 8)
    weights, ran = tmp_path / "weights", []

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 3 * 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(book, checkpoint, weights, interrupt)
    for number, job in enumerate(book.jobs):
        encode = job.encode
        book.jobs[number] = replace(
            job, encode=lambda w, n=number, encode=encode: (ran.append(n), encode(w))[1]
        )
    write(book, checkpoint, weights)
    assert len(ran) == 5
    written = np.fromfile(weights, np.float32).reshape(8, 1024)
    np.testing.assert_array_equal(written, np.arange(1, 9)[:, None].repeat(1024, 1))


def test_weights_without_a_journal_of_theirs_are_written_anew(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    stack(book, graph, 2)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(8192))
    with Journal(tmp_path / "weights.jsonl", "another export") as other:
        other.begin(goes_on=False)
        other.add(0, {}, lambda: None)
        other.add(1, {}, lambda: None)
        other.sync(lambda: None)
    write(book, checkpoint, weights)
    assert np.fromfile(weights, np.float32)[[0, -1]].tolist() == [1, 2]


def test_journal_says_only_what_was_forced_to_the_disk(tmp_path: Path) -> None:
    file, synced = tmp_path / "journal", []
    with Journal(file, "x") as journal:
        journal.begin(goes_on=False)
        journal.add(4, {"a": [0.1, 2.5]}, lambda: synced.append(4))
        assert Journal(file, "x").read() == {}
        journal.sync(lambda: synced.append("end"))
    assert synced == ["end"]
    assert Journal(file, "x").read() == {4: {"a": [0.1, 2.5]}}
    assert Journal(file, "y").read() is None


@pytest.mark.parametrize("cut", ["[[5, 6", "[[5, 6]]", "5, 6]\n", "null\n", "[5, 6]\n", '["a"]\n'])
def test_last_line_of_a_journal_that_was_cut_short_is_not_believed(
    tmp_path: Path, cut: str
) -> None:
    file = tmp_path / "journal"
    file.write_text('{"fingerprint": "x"}\n[[1, {}]]\n' + cut)
    assert Journal(file, "x").read() == {1: {}}


def test_journal_that_goes_on_after_a_cut_line_keeps_both_parts(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text('{"fingerprint": "x"}\n[[1, {}]]\n[[2, {}], [3')
    with Journal(file, "x") as journal:
        journal.begin(goes_on=True)
        journal.add(4, {}, lambda: None)
        journal.sync(lambda: None)
    assert Journal(file, "x").read() == {1: {}, 4: {}}


def test_losses_are_those_of_one_run_though_it_was_interrupted(
    book: WeightBook, graph: ir.Graph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    book.declare(graph, "stack", (8, 1024))
    for index in range(8):
        # A third is no short decimal fraction: it must come back from the journal as it was.
        sums = [Sums(index / 3, 1.0)]
        value = np.zeros(1024, np.float32)
        slot = Slot("stack", index)
        book.fill([NORM], lambda w, v=value: [v], slot, measure=lambda w, kept, s=sums: s)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 3 * 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(book, checkpoint, tmp_path / "weights", interrupt)
    journal = Journal(tmp_path / "weights.jsonl", "this export")
    encode = encode_here(book.jobs, checkpoint)
    found = write_weights(
        book, lay_out(book), encode, tmp_path / "weights", journal, ignore_progress
    )
    assert found == [{NORM: Sums(index / 3, 1.0)} for index in range(8)]
