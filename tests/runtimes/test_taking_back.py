"""Proposals, marks and snapshots: what every session promises of going back, exactly.

"Exactly" is bit for bit against a session that never held the other tokens, where both
append in pieces of the same sizes; float32, so that no rounding to 8 bits hides a fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lfm2_deploy import api
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import NamedStates, Runtime, Session
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.registry import find_runtime
from runtimes.fake import FakeRuntime, hash_logits

PROMPT = [3, 14, 15, 92, 6, 5, 35]
MORE = [89, 79, 32, 38, 46]


@pytest.fixture(scope="module", params=["ort-dense", "ort-moe", "reference", "fake"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    kind, _, model = request.param.partition("-")
    loaded: Runtime
    if kind == "fake":
        loaded = FakeRuntime(hash_logits(128), vocab_size=128)
    elif kind == "reference":
        loaded = find_runtime("reference")(open_checkpoint("synthetic:tiny-moe"))
    else:
        place = tmp_path_factory.mktemp(model) / "bundle"
        bundle = api.export(f"synthetic:tiny-{model}", place, precision="fp32")
        loaded = find_runtime("ort")(bundle)
    return loaded


def plain(runtime: Runtime, *pieces: list[int]) -> Session:
    """A session that appended pieces and nothing else."""
    session = runtime.open(1, 60)
    for piece in pieces:
        if piece:
            session.prefill([piece])
    return session


def same_next(a: Session, b: Session) -> None:
    """Both go on alike: one token alone, and several."""
    assert a.lengths == b.lengths
    np.testing.assert_array_equal(a.decode([7]), b.decode([7]))
    np.testing.assert_array_equal(a.prefill([[1, 2, 3]]), b.prefill([[1, 2, 3]]))


def close(a: Any, b: Any) -> None:
    # Pieces of other sizes sum in another order: float32 rounding of logits near 1.
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_proposal_scores_as_appending_does(runtime: Runtime) -> None:
    proposed = plain(runtime, PROMPT).propose([MORE])
    scored = plain(runtime, PROMPT).score([MORE])
    assert [part.shape for part in proposed] == [part.shape for part in scored]
    np.testing.assert_array_equal(proposed[0], scored[0])


@pytest.mark.parametrize("count", range(len(MORE) + 1))
def test_after_accepting_some_it_is_as_if_no_more_had_come(runtime: Runtime, count: int) -> None:
    session = plain(runtime, PROMPT)
    session.propose([MORE])
    session.accept([count])
    fresh = plain(runtime, PROMPT, MORE[:count])
    assert session.lengths == fresh.lengths
    close(session.decode([7]), fresh.decode([7]))
    close(session.prefill([[1, 2, 3]]), fresh.prefill([[1, 2, 3]]))


def test_proposal_that_is_accepted_whole_is_an_append(runtime: Runtime) -> None:
    session = plain(runtime, PROMPT)
    session.propose([MORE])
    session.accept([len(MORE)])
    same_next(session, plain(runtime, PROMPT, MORE))


def test_proposal_to_an_empty_session_can_be_refused_whole(runtime: Runtime) -> None:
    session = runtime.open(1, 60)
    session.propose([MORE])
    session.accept([0])
    session.prefill([PROMPT])
    same_next(session, plain(runtime, PROMPT))


def test_proposals_of_rows_of_different_lengths_are_cut_apart(runtime: Runtime) -> None:
    session = runtime.open(3, 60)
    session.prefill([PROMPT, [9, 8], PROMPT[:4]])
    session.propose([MORE, MORE[:2], []])
    session.accept([3, 0, 0])
    assert session.lengths == (10, 2, 4)
    logits = session.decode([7, 7, 7])
    for row, pieces in enumerate(([PROMPT, MORE[:3]], [[9, 8]], [PROMPT[:4]])):
        close(logits[row], plain(runtime, *pieces).decode([7])[0])


@pytest.mark.parametrize("act", ["prefill", "decode", "score", "propose", "mark", "snapshot"])
def test_nothing_is_done_between_proposal_and_acceptance(runtime: Runtime, act: str) -> None:
    session = plain(runtime, PROMPT)
    session.propose([MORE])
    arguments = {"decode": [[1]], "mark": [], "snapshot": []}.get(act, [[[1]]])
    with pytest.raises(GenerationError, match="accept"):
        getattr(session, act)(*arguments)
    session.accept([0])
    same_next(session, plain(runtime, PROMPT))


@pytest.mark.parametrize("counts", [[6], [-1], [1, 1], []])
def test_more_than_was_proposed_cannot_be_accepted(runtime: Runtime, counts: list[int]) -> None:
    session = plain(runtime, PROMPT)
    session.propose([MORE])
    with pytest.raises(GenerationError, match="cannot be accepted"):
        session.accept(counts)
    session.accept([5])


def test_acceptance_without_a_proposal_is_refused(runtime: Runtime) -> None:
    with pytest.raises(GenerationError, match="no proposal"):
        plain(runtime, PROMPT).accept([0])


def test_longer_proposal_than_can_be_taken_back_is_refused(runtime: Runtime) -> None:
    most = runtime.info.capabilities.max_proposal
    session = plain(runtime, PROMPT)
    with pytest.raises(GenerationError, match=f"at most|{most}"):
        session.propose([[1] * (most + 1)])
    same_next(session, plain(runtime, PROMPT))


def test_rewinding_gives_the_marked_place_again(runtime: Runtime) -> None:
    session = plain(runtime, PROMPT)
    mark = session.mark()
    session.prefill([MORE])
    session.decode([1])
    session.rewind(mark)
    same_next(session, plain(runtime, PROMPT))


def test_a_mark_can_be_gone_back_to_again_and_again(runtime: Runtime) -> None:
    session = plain(runtime, PROMPT)
    mark = session.mark()
    for branch in ([1, 2], [3], [4, 5, 6]):
        session.rewind(mark)
        session.prefill([branch])
        np.testing.assert_array_equal(
            session.decode([9]), plain(runtime, PROMPT, branch).decode([9])
        )


def test_marks_beyond_a_rewind_are_void_and_those_before_are_not(runtime: Runtime) -> None:
    session = runtime.open(1, 60)
    empty = session.mark()
    session.prefill([PROMPT])
    middle = session.mark()
    session.prefill([MORE])
    late = session.mark()
    session.rewind(middle)
    with pytest.raises(GenerationError, match="no longer there"):
        session.rewind(late)
    session.rewind(empty)
    session.prefill([PROMPT])
    same_next(session, plain(runtime, PROMPT))


@pytest.mark.parametrize("clear", ["reset", "restore"])
def test_marks_of_what_was_replaced_are_void(runtime: Runtime, clear: str) -> None:
    session = plain(runtime, PROMPT)
    mark, snapshot = session.mark(), session.snapshot()
    session.reset() if clear == "reset" else session.restore(snapshot)
    with pytest.raises(GenerationError, match="no longer there"):
        session.rewind(mark)


def test_mark_of_another_session_is_refused(runtime: Runtime) -> None:
    mark = plain(runtime, PROMPT).mark()
    with pytest.raises(GenerationError, match="another session"):
        plain(runtime, PROMPT).rewind(mark)


def test_snapshot_of_a_marked_place_opens_a_branch(runtime: Runtime) -> None:
    session = plain(runtime, PROMPT)
    mark = session.mark()
    session.prefill([MORE])
    branch = runtime.open(1, 60)
    branch.restore(session.snapshot(mark))
    same_next(branch, plain(runtime, PROMPT))
    same_next(session, plain(runtime, PROMPT, MORE))


def test_marks_of_several_rows_rewind_each(runtime: Runtime) -> None:
    session = runtime.open(2, 60)
    session.prefill([PROMPT, [9, 8]])
    mark = session.mark()
    session.prefill([MORE, MORE])
    session.rewind(mark)
    logits = session.decode([7, 7])
    close(logits[0], plain(runtime, PROMPT).decode([7])[0])
    close(logits[1], plain(runtime, [9, 8]).decode([7])[0])


def test_snapshot_fits_a_session_of_another_capacity(runtime: Runtime) -> None:
    if runtime.info.runtime != "ort":
        pytest.skip("only ONNX Runtime's snapshots are promised to fit other sessions")
    snapshot = plain(runtime, PROMPT).snapshot()
    assert isinstance(snapshot, NamedStates)
    assert set(snapshot.arrays) == {spec.input for spec in runtime.states}  # type: ignore[attr-defined]
    other = runtime.open(1, 40)
    other.restore(snapshot)
    same_next(other, plain(runtime, PROMPT))


def test_bundle_without_windows_admits_that_it_cannot_propose(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters.passes import lower_conv

    monkeypatch.setattr(lower_conv, "_add_output", lambda *arguments: None)
    bundle = api.export("synthetic:tiny-dense", tmp_path / "old", precision="fp32")
    old: Runtime = find_runtime("ort")(bundle)
    assert old.info.capabilities.max_proposal == 0
    session = old.open(1, 20)
    with pytest.raises(GenerationError, match="can take back 0"):
        session.propose([[1]])
    assert session.prefill([[1]]).shape == (1, old.config.vocab_size)
