"""What ONNX Runtime's adapter refuses, and what it reports of itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy import export
from lfm2_deploy.bundle import GRAPH, WEIGHTS, Bundle
from lfm2_deploy.contracts import Capabilities, NamedStates, RuntimeInfo, Snapshot
from lfm2_deploy.errors import (
    BundleError,
    ContextOverflowError,
    GenerationError,
    RuntimeUnavailableError,
)
from lfm2_deploy.machine import measure_memory
from runtimes.fake import FakeRuntime, hash_logits
from runtimes.ort import OrtRuntime, load
from runtimes.ort_session import PREFILL_CHUNK, OrtSession, reserve

Rows = Sequence[Sequence[int]]

# synthetic:tiny-dense has one attention and three convolutions, width 128, one KV head of 64.
KV_BYTES = 1 * 2 * 64 * 4  # a token's keys and values, float32
CONV_BYTES = 3 * 128 * 2 * 4  # a row's two columns of each conv layer, float32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random dense model in fp32, whose rows share a session. Treat it as read-only."""
    out = tmp_path_factory.mktemp("ort") / "dense"
    return export("synthetic:tiny-dense", out, precision="fp32")


@pytest.fixture(scope="module")
def runtime(bundle: Bundle) -> OrtRuntime:
    return load(bundle, threads=1)


def call_prefill(session: OrtSession, rows: Rows) -> object:
    return session.prefill(rows)


def call_score(session: OrtSession, rows: Rows) -> object:
    return session.score(rows)


appending = pytest.mark.parametrize("append", [call_prefill, call_score])
Append = Callable[[OrtSession, Rows], object]


def test_runtime_reports_where_it_runs_and_what_it_can_do(
    runtime: OrtRuntime, bundle: Bundle
) -> None:
    able = Capabilities(
        appends_many=True,
        rewinds=True,
        max_batch_size=0,
        scores_all=True,
        max_proposal=16,
        joins_rows=True,
    )
    told = RuntimeInfo("ort", "cpu", able, driver=runtime.info.driver, arithmetic="float32")
    assert runtime.info == told
    assert runtime.info.driver.startswith("onnxruntime ")
    assert runtime.config == bundle.config
    assert runtime.context_length == 4096


def test_session_starts_empty_with_the_whole_context(runtime: OrtRuntime) -> None:
    session = runtime.open()
    assert (session.batch_size, session.capacity, session.lengths) == (1, 4096, (0,))


def test_lengths_count_each_rows_tokens(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 8)
    session.prefill([[1, 2, 3], [4]])
    assert session.lengths == (3, 1)
    session.decode([None, 5])
    assert session.lengths == (3, 2)
    session.reset()
    assert session.lengths == (0, 0)


def test_row_may_fill_its_capacity_exactly(runtime: OrtRuntime) -> None:
    session = runtime.open(1, 4)
    session.prefill([[1, 2, 3]])
    session.decode([4])
    assert session.lengths == (4,)


@appending
def test_overflow_is_refused_before_anything_is_appended(
    runtime: OrtRuntime, append: Append
) -> None:
    session, untouched = runtime.open(2, 6), runtime.open(2, 6)
    for each in (session, untouched):
        each.prefill([[1, 2, 3], [4]])
    with pytest.raises(ContextOverflowError, match="row 0 holds 3 tokens and 4 more do not fit"):
        append(session, [[5, 6, 7, 8], [9]])
    assert session.lengths == (3, 1)
    assert np.array_equal(session.decode([5, 6]), untouched.decode([5, 6]))


@appending
def test_overflow_of_many_pieces_runs_none_of_them(runtime: OrtRuntime, append: Append) -> None:
    session = runtime.open(1, 2 * PREFILL_CHUNK)
    with pytest.raises(ContextOverflowError):
        append(session, [[1] * (2 * PREFILL_CHUNK + 1)])
    assert session.lengths == (0,)
    assert np.array_equal(session.prefill([[1, 2]]), runtime.open().prefill([[1, 2]]))


def test_decode_into_a_full_row_is_refused(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 3)
    session.prefill([[1, 2, 3], [4]])
    with pytest.raises(ContextOverflowError, match="row 0 holds 3 tokens and 1 more do not fit"):
        session.decode([5, 6])
    assert session.lengths == (3, 1)


def test_full_row_may_be_left_as_it_is_while_another_goes_on(runtime: OrtRuntime) -> None:
    session, alone = runtime.open(2, 3), runtime.open(1, 3)
    session.prefill([[1, 2, 3], [4]])
    alone.prefill([[4]])
    logits = session.decode([None, 5])
    assert session.lengths == (3, 2)
    # A batch of another size may order its sums differently: float32's rounding at logits
    # of about 1.
    np.testing.assert_allclose(logits[1], alone.decode([5])[0], atol=1e-5)


def test_empty_row_may_be_left_as_it_is_while_another_goes_on(runtime: OrtRuntime) -> None:
    session, alone = runtime.open(2, 3), runtime.open(1, 3)
    logits = session.decode([None, 5])
    assert session.lengths == (0, 1)
    # As above: float32's rounding at logits of about 1.
    np.testing.assert_allclose(logits[1], alone.prefill([[5]])[0], atol=1e-5)
    np.testing.assert_allclose(session.decode([5, None])[0], logits[1], atol=1e-5)


@appending
def test_nearly_full_row_takes_its_token_beside_a_longer_one(
    runtime: OrtRuntime, append: Append
) -> None:
    # Every row fits, though the padding beside the first one's single token would not.
    session = runtime.open(2, 6)
    session.prefill([[1, 2, 3, 4, 5], [6]])
    append(session, [[7], [8, 9, 10]])
    assert session.lengths == (6, 4)


@appending
@pytest.mark.parametrize("token", [-1, 512, 2**40])
def test_unknown_token_is_refused_with_the_range(
    runtime: OrtRuntime, append: Append, token: int
) -> None:
    session = runtime.open(2, 8)
    with pytest.raises(GenerationError, match=f"token id {token} is not in 0 to 511"):
        append(session, [[1, 2], [3, token]])
    assert session.lengths == (0, 0)


@pytest.mark.parametrize("token", [-1, 512])
def test_unknown_token_to_decode_is_refused(runtime: OrtRuntime, token: int) -> None:
    session = runtime.open(1, 8)
    session.prefill([[1]])
    with pytest.raises(GenerationError, match=f"token id {token} is not in 0 to 511"):
        session.decode([token])
    assert session.lengths == (1,)


@pytest.mark.parametrize("token", [0, 511])
def test_first_and_last_token_are_known(runtime: OrtRuntime, token: int) -> None:
    logits = runtime.open(1, 1).prefill([[token]])
    assert logits.shape == (1, 512)
    assert np.isfinite(logits).all()


@appending
@pytest.mark.parametrize("rows", [[], [[1]], [[1], [2], [3]]])
def test_other_number_of_rows_is_refused(
    runtime: OrtRuntime, append: Append, rows: list[list[int]]
) -> None:
    session = runtime.open(2, 8)
    with pytest.raises(GenerationError, match=f"{len(rows)} rows were given, expected 2"):
        append(session, rows)
    assert session.lengths == (0, 0)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3]])
def test_other_number_of_rows_to_decode_is_refused(runtime: OrtRuntime, tokens: list[int]) -> None:
    session = runtime.open(2, 8)
    session.prefill([[1], [2]])
    with pytest.raises(GenerationError, match=f"{len(tokens)} rows were given, expected 2"):
        session.decode(tokens)
    assert session.lengths == (1, 1)


@appending
def test_batch_without_any_token_is_refused(runtime: OrtRuntime, append: Append) -> None:
    session = runtime.open(2, 8)
    with pytest.raises(GenerationError, match="no token to append"):
        append(session, [[], []])
    assert session.lengths == (0, 0)


def test_row_without_tokens_stays_while_another_grows(runtime: OrtRuntime) -> None:
    session, alone = runtime.open(2, 8), runtime.open(1, 8)
    session.prefill([[1, 2], [3]])
    alone.prefill([[1, 2]])
    scored = session.score([[], [4, 5]])
    assert session.lengths == (2, 3)
    assert [len(logits) for logits in scored] == [0, 2]
    assert np.array_equal(session.decode([6, None])[0], alone.decode([6])[0])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_without_rows_is_refused(runtime: OrtRuntime, batch_size: int) -> None:
    with pytest.raises(GenerationError, match=f"batch_size is {batch_size}, expected at least 1"):
        runtime.open(batch_size)


@pytest.mark.parametrize("capacity", [4097, 0, -1])
def test_capacity_outside_the_context_is_refused(runtime: OrtRuntime, capacity: int) -> None:
    with pytest.raises(ContextOverflowError, match=f"capacity of {capacity} tokens is not"):
        runtime.open(1, capacity)


def test_closed_runtime_refuses_new_and_old_sessions(bundle: Bundle) -> None:
    runtime = load(bundle, threads=1)
    session = runtime.open(1, 8)
    session.prefill([[1]])
    runtime.close()
    runtime.close()
    uses: list[Callable[[], object]] = [
        runtime.open,
        lambda: session.prefill([[1]]),
        lambda: session.score([[1]]),
        lambda: session.decode([1]),
    ]
    for use in uses:
        with pytest.raises(GenerationError, match="this runtime is closed; load the bundle again"):
            use()
    assert session.lengths == (1,)


def test_closing_one_runtime_leaves_another_of_the_bundle(
    bundle: Bundle, runtime: OrtRuntime
) -> None:
    load(bundle, threads=1).close()
    assert runtime.open(1, 1).prefill([[1]]).shape == (1, 512)


def test_snapshot_brings_back_the_session_exactly(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 16)
    session.prefill([[1, 2, 3], [4]])
    snapshot = session.snapshot()
    expected = session.decode([5, 6])
    session.prefill([[7, 8, 9], [10, 11]])
    session.restore(snapshot)
    assert session.lengths == snapshot.lengths == (3, 1)
    assert np.array_equal(session.decode([5, 6]), expected)


def test_snapshot_fits_a_session_of_another_capacity(runtime: OrtRuntime) -> None:
    session, smaller = runtime.open(1, 64), runtime.open(1, 4)
    session.prefill([[1, 2, 3]])
    smaller.restore(session.snapshot())
    # Another capacity is another shape of buffers, so sums may be ordered differently:
    # float32's rounding at logits of about 1.
    np.testing.assert_allclose(smaller.decode([4]), session.decode([4]), atol=1e-5)


@pytest.mark.parametrize("capacity", [8, 4096])
def test_snapshot_holds_used_rows_only(runtime: OrtRuntime, capacity: int) -> None:
    session = runtime.open(1, capacity)
    assert session.snapshot().size_bytes == CONV_BYTES
    session.prefill([[1, 2, 3]])
    assert session.snapshot().size_bytes == 3 * KV_BYTES + CONV_BYTES


def test_snapshot_of_a_batch_is_cut_to_its_longest_row(runtime: OrtRuntime) -> None:
    session = runtime.open(2, 16)
    session.prefill([[1], [2, 3, 4, 5, 6]])
    assert session.snapshot().size_bytes == 2 * (5 * KV_BYTES + CONV_BYTES)


def test_snapshot_of_a_longer_session_is_refused(runtime: OrtRuntime) -> None:
    session, longer = runtime.open(1, 4), runtime.open(1, 16)
    session.prefill([[1, 2]])
    longer.prefill([[1, 2, 3, 4, 5]])
    with pytest.raises(ContextOverflowError, match=r"holds 5 tokens, .* capacity is 4"):
        session.restore(longer.snapshot())
    assert session.lengths == (2,)


def other_batch(runtime: OrtRuntime) -> Snapshot:
    return runtime.open(2, 16).snapshot()


def other_runtime(runtime: OrtRuntime) -> Snapshot:
    return FakeRuntime(hash_logits(512), vocab_size=512).open(1).snapshot()


def without(snapshot: NamedStates, *kinds: str) -> NamedStates:
    kept = {n: a for n, a in snapshot.arrays.items() if n.rpartition(".")[2] not in kinds}
    return NamedStates(snapshot.lengths, kept)


def model_with_fewer_attention_layers(runtime: OrtRuntime) -> Snapshot:
    session = runtime.open(1, 16)
    session.prefill([[1, 2, 3]])
    snapshot = session.snapshot()
    assert isinstance(snapshot, NamedStates)
    return without(snapshot, "key", "value")


def model_with_fewer_conv_layers(runtime: OrtRuntime) -> Snapshot:
    session = runtime.open(1, 16)
    session.prefill([[1, 2, 3]])
    snapshot = session.snapshot()
    assert isinstance(snapshot, NamedStates)
    return without(snapshot, "conv")


def model_whose_shapes_broadcast(runtime: OrtRuntime) -> Snapshot:
    session = runtime.open(1, 16)
    session.prefill([[1, 2, 3]])
    snapshot = session.snapshot()
    assert isinstance(snapshot, NamedStates)
    return NamedStates(snapshot.lengths, {n: a[..., :1].copy() for n, a in snapshot.arrays.items()})


@pytest.mark.parametrize(
    "take",
    [
        other_batch,
        other_runtime,
        model_with_fewer_attention_layers,
        model_with_fewer_conv_layers,
        model_whose_shapes_broadcast,
    ],
)
def test_foreign_snapshot_is_refused_and_changes_nothing(
    runtime: OrtRuntime, take: Callable[[OrtRuntime], Snapshot]
) -> None:
    session, untouched = runtime.open(1, 16), runtime.open(1, 16)
    for each in (session, untouched):
        each.prefill([[7, 8, 9, 10]])
    with pytest.raises(GenerationError, match="this snapshot is of another session"):
        session.restore(take(runtime))
    assert session.lengths == (4,)
    assert np.array_equal(session.decode([11]), untouched.decode([11]))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (GRAPH, lambda content: b""),
        (GRAPH, lambda content: b"not a graph"),
        (GRAPH, cut),
        (GRAPH, lambda content: bytes(len(content))),
        (GRAPH, None),
        (WEIGHTS, cut),
        (WEIGHTS, None),
    ],
    ids=["empty graph", "text", "cut graph", "zeros", "no graph", "cut weights", "no weights"],
)
def test_damage_that_opening_did_not_see_is_one_clear_error(
    bundle: Bundle, tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    damaged = replace(bundle, path=shutil.copytree(bundle.path, tmp_path / "damaged"))
    file = damaged.path / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BundleError) as caught:
        load(damaged, threads=1)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert f"cannot load {damaged.graph}" in message
    assert message.endswith("export the model again with the installed versions")


def test_bundle_of_another_runtime_is_refused_with_both_names(bundle: Bundle) -> None:
    foreign = replace(bundle, manifest=replace(bundle.manifest, runtime="openvino"))
    with pytest.raises(RuntimeUnavailableError) as caught:
        load(foreign)
    assert "was made for runtime 'openvino', this is 'ort'" in str(caught.value)
    assert "--target cpu" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told otherwise elsewhere")
def test_long_buffers_take_memory_only_where_they_are_written() -> None:
    # Huge pages, which np.zeros asks for, would take 2 MiB for each of the 32 heads.
    buffers = [reserve((1, 8, 32_768, 64)) for _ in range(4)]
    before, _ = measure_memory()
    for buffer in buffers:
        buffer[:, :, 0] = 1
    after, _ = measure_memory()
    assert before is not None
    assert after is not None
    assert after - before < 4 * 2**20
    assert not any(buffer[:, :, 1:9].any() for buffer in buffers)


def test_a_single_empty_row_may_stay_empty(runtime: OrtRuntime) -> None:
    session = runtime.open(1, 8)
    assert session.decode([None]).shape == (1, runtime.config.vocab_size)
    assert session.lengths == (0,)
    fresh = runtime.open(1, 8)
    np.testing.assert_array_equal(session.prefill([[3, 4]]), fresh.prefill([[3, 4]]))
