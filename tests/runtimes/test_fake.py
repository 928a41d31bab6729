"""The fake runtime honours the contract of sessions, so what passes on it can be believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.contracts import Capabilities, Runtime, Session
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from runtimes.fake import FakeRuntime, FakeSession, hash_logits, scripted_logits

VOCAB, CONTEXT = 32, 16
NOTHING = Capabilities(appends_many=False, rewinds=False, max_batch_size=1, scores_all=False)
LOGITS = hash_logits(VOCAB)


def runtime(**options: Any) -> FakeRuntime:
    return FakeRuntime(LOGITS, vocab_size=VOCAB, context_length=CONTEXT, **options)


def test_fake_is_a_runtime_of_the_contract() -> None:
    fake = runtime(eos_token_ids=(5, 6))
    as_runtime: Runtime = fake
    as_session: Session = fake.open()
    assert (as_runtime.info.runtime, as_runtime.context_length) == ("fake", CONTEXT)
    assert as_runtime.config.vocab_size == VOCAB
    assert set(as_runtime.config.eos_token_ids) == {5, 6}
    assert (as_session.batch_size, as_session.capacity, as_session.lengths) == (1, CONTEXT, (0,))


def test_prefill_gives_the_logits_after_each_rows_last_token() -> None:
    session = runtime().open(2)
    logits = session.prefill([[1, 2, 3], [4]])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [LOGITS([1, 2, 3]), LOGITS([4])])
    assert session.lengths == (3, 1)


def test_appending_piecewise_equals_appending_at_once() -> None:
    session = runtime().open(2)
    session.prefill([[1], [4, 5]])
    session.prefill([[2, 3], [6]])
    logits = session.decode([7, 8])
    np.testing.assert_array_equal(logits, [LOGITS([1, 2, 3, 7]), LOGITS([4, 5, 6, 8])])


def test_none_leaves_a_row_as_it_is() -> None:
    session = runtime().open(3)
    session.prefill([[1], [2, 3], [4]])
    logits = session.decode([None, 5, None])
    np.testing.assert_array_equal(logits[1], LOGITS([2, 3, 5]))
    assert np.isnan(logits[[0, 2]]).all()
    assert session.lengths == (1, 3, 1)
    np.testing.assert_array_equal(session.decode([6, None, None])[0], LOGITS([1, 6]))
    session.decode([None, None, None])
    assert session.lengths == (2, 3, 1)


def test_score_gives_logits_after_every_token() -> None:
    session = runtime().open(2)
    session.prefill([[1], [2]])
    first, second = session.score([[3, 4], [5]])
    np.testing.assert_array_equal(first, [LOGITS([1, 3]), LOGITS([1, 3, 4])])
    np.testing.assert_array_equal(second, [LOGITS([2, 5])])
    assert session.lengths == (3, 2)


def test_capacity_can_be_filled_exactly_and_not_exceeded() -> None:
    session = runtime().open(2, 4)
    session.prefill([[1, 2, 3], [1]])
    session.decode([4, 2])
    for append in (
        lambda: session.decode([5, None]),
        lambda: session.decode([5, 3]),
        lambda: session.prefill([[5], [3]]),
        lambda: session.score([[5], [3]]),
        lambda: session.prefill([[5], [3, 4, 5]]),
    ):
        with pytest.raises(ContextOverflowError):
            append()
        assert session.lengths == (4, 2)
    np.testing.assert_array_equal(session.decode([None, 3])[1], LOGITS([1, 2, 3]))


def test_reset_empties_every_row() -> None:
    session = runtime().open(2)
    session.prefill([[1, 2], [3]])
    session.reset()
    assert session.lengths == (0, 0)
    np.testing.assert_array_equal(session.prefill([[4], [5]]), [LOGITS([4]), LOGITS([5])])


def test_restored_snapshot_goes_on_as_if_nothing_happened() -> None:
    session = runtime().open(2)
    session.prefill([[1, 2], [3]])
    snapshot = session.snapshot()
    expected = session.decode([4, 5])
    session.prefill([[6, 7], [8]])
    for _ in range(2):
        session.restore(snapshot)
        assert session.lengths == snapshot.lengths == (2, 1)
        np.testing.assert_array_equal(session.decode([4, 5]), expected)
    session.reset()
    session.restore(snapshot)
    np.testing.assert_array_equal(session.decode([4, 5]), expected)
    assert snapshot.size_bytes == 8 * 3


def test_snapshot_of_another_session_is_refused() -> None:
    fake = runtime()
    two, short = fake.open(2), fake.open(1, 2)
    one = fake.open(1)
    one.prefill([[1, 2, 3]])
    with pytest.raises(GenerationError, match="cannot be restored"):
        two.restore(one.snapshot())
    with pytest.raises(ContextOverflowError, match="holds 3 tokens"):
        short.restore(one.snapshot())
    assert (two.lengths, short.lengths) == ((0, 0), (0,))


def test_sessions_do_not_share_rows() -> None:
    fake = runtime()
    first, second = fake.open(), fake.open()
    first.prefill([[1, 2]])
    np.testing.assert_array_equal(second.prefill([[3]]), [LOGITS([3])])
    assert fake.sessions == [first, second]
    assert first.lengths == (2,)


def test_callers_lists_are_copied() -> None:
    session = runtime().open()
    row = [1, 2]
    session.prefill([row])
    row.append(9)
    assert session.calls == [("prefill", [[1, 2]])]
    np.testing.assert_array_equal(session.decode([3]), [LOGITS([1, 2, 3])])


@pytest.mark.parametrize(
    "misuse",
    [
        lambda session: session.prefill([[1]]),
        lambda session: session.prefill([[], []]),
        lambda session: session.prefill([[1], [VOCAB]]),
        lambda session: session.prefill([[1], [-1]]),
        lambda session: session.decode([1]),
        lambda session: session.decode([1, VOCAB]),
        lambda session: session.score([[1], [2], [3]]),
        lambda session: session.score([[], []]),
    ],
)
def test_misuse_is_refused_and_appends_nothing(misuse: Callable[[FakeSession], object]) -> None:
    session = runtime().open(2)
    with pytest.raises(GenerationError):
        misuse(session)
    assert session.lengths == (0, 0)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda session: session.prefill([[2, 3]]), "append several tokens"),
        (lambda session: session.score([[2]]), "score every position"),
        (lambda session: session.snapshot(), "take snapshots"),
    ],
)
def test_capability_it_lacks_is_refused(
    misuse: Callable[[FakeSession], object], message: str
) -> None:
    session = runtime(capabilities=NOTHING).open()
    session.prefill([[1, 1]])
    with pytest.raises(GenerationError, match=message):
        misuse(session)
    assert session.lengths == (2,)
    np.testing.assert_array_equal(session.decode([3]), [LOGITS([1, 1, 3])])


def test_restore_without_the_capability_is_refused() -> None:
    snapshot = runtime().open().snapshot()
    with pytest.raises(GenerationError, match="restore snapshots"):
        runtime(capabilities=NOTHING).open().restore(snapshot)


def test_open_refuses_what_the_runtime_cannot_hold() -> None:
    with pytest.raises(GenerationError, match="2 rows exceeds"):
        runtime(capabilities=NOTHING).open(2)
    with pytest.raises(GenerationError, match="batch_size is 0"):
        runtime().open(0)
    for capacity in (0, CONTEXT + 1):
        with pytest.raises(ContextOverflowError):
            runtime().open(1, capacity)


def test_closed_runtime_and_its_sessions_are_unusable() -> None:
    fake = runtime()
    session = fake.open()
    fake.close()
    for use in (fake.open, lambda: session.prefill([[1]]), lambda: session.decode([1])):
        with pytest.raises(GenerationError, match="closed"):
            use()


def test_hash_logits_depend_on_every_token_and_on_nothing_else() -> None:
    np.testing.assert_array_equal(LOGITS([1, 2, 3]), hash_logits(VOCAB)((1, 2, 3)))
    histories = [[1, 2, 3], [9, 2, 3], [1, 9, 3], [1, 2, 9], [3, 2, 1], [1, 2]]
    assert len({LOGITS(history).tobytes() for history in histories}) == len(histories)


def test_scripted_logits_follow_the_reply_and_then_end() -> None:
    logits = scripted_logits(VOCAB, {(1, 2): [3, 4], (1,): [9]}, then=7)
    histories = {(1, 2): 3, (1, 2, 3): 4, (1, 2, 3, 4): 7, (1,): 9, (1, 9): 7, (5,): 7}
    for history, expected in histories.items():
        assert logits(history).argmax() == expected, history
