"""Rows that must not disturb each other run in sessions of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy import export
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from runtimes.fake import FakeRuntime, hash_logits
from runtimes.ort import OrtRuntime, load
from runtimes.ort_session import OrtSession
from runtimes.separate_rows import SeparateRows

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> OrtRuntime:
    """A random mixture of experts in int4, where one bit more or less changes tokens."""
    out = tmp_path_factory.mktemp("rows") / "moe"
    return load(export("synthetic:tiny-moe", out, precision="int4"), threads=2)


def test_batch_of_experts_is_bit_for_bit_what_each_row_gives_alone(runtime: OrtRuntime) -> None:
    batch, singles = runtime.open(3, 32), [runtime.open(1, 32) for _ in PROMPTS]
    assert isinstance(batch, SeparateRows)
    together = batch.prefill(PROMPTS)
    for row, (single, prompt) in enumerate(zip(singles, PROMPTS, strict=True)):
        np.testing.assert_array_equal(together[row], single.prefill([prompt])[0])
    for token in range(20, 28):
        together = batch.decode([token, None, token + 1])
        np.testing.assert_array_equal(together[0], singles[0].decode([token])[0])
        np.testing.assert_array_equal(together[2], singles[2].decode([token + 1])[0])
    assert batch.lengths == (15, 1, 11)


def test_snapshot_brings_all_rows_back(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 16)
    session.prefill([[1, 2, 3], [4]])
    snapshot = session.snapshot()
    expected = session.decode([5, 6])
    session.reset()
    session.restore(snapshot)
    assert session.lengths == snapshot.lengths == (3, 1)
    assert snapshot.size_bytes > 0
    np.testing.assert_array_equal(session.decode([5, 6]), expected)


def test_overflow_of_one_row_appends_to_none(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 4)
    with pytest.raises(ContextOverflowError, match="row 1 holds 0 tokens and 5 more"):
        session.prefill([[1], [1, 2, 3, 4, 5]])
    assert session.lengths == (0, 0)


def test_foreign_snapshot_and_empty_batch_are_refused(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 8)
    with pytest.raises(GenerationError, match="another session"):
        session.restore(FakeRuntime(hash_logits(512), vocab_size=512).open(2).snapshot())
    with pytest.raises(GenerationError, match="no token to append"):
        session.score([[], []])


def test_scored_rows_have_their_own_lengths(runtime: OrtRuntime) -> None:
    scored = runtime.open(2, 8).score([[1, 2, 3], []])
    assert [logits.shape for logits in scored] == [(3, 512), (0, 512)]


def test_rows_of_a_dense_model_share_a_session_only_where_no_bit_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = load(export("synthetic:tiny-dense", tmp_path / "dense", precision="fp32"), threads=1)
    assert isinstance(dense.open(2, 8), OrtSession)
    run = OrtSession._run

    def run_rows_alone_otherwise(self: OrtSession, *args: Any, **kwargs: Any) -> FloatArray:
        # As int4's kernel does on AVX2: one row is summed in another order.
        logits = run(self, *args, **kwargs)
        return np.nextafter(logits, np.float32(np.inf)) if self.batch_size == 1 else logits

    monkeypatch.setattr(OrtSession, "_run", run_rows_alone_otherwise)
    assert isinstance(dense.open(2, 8), OrtSession)  # tried before, and remembered
    assert isinstance(dense.open(3, 8), SeparateRows)
