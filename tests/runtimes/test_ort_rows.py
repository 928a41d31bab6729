"""Rows that come and go give what they give in sessions of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy import export
from lfm2_deploy.contracts import Session
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from runtimes.ort import OrtRuntime, load
from runtimes.ort_rows import OrtRows

# Several rows are added up in another order than one: about ten roundings of float32 beside
# logits of size 1 to 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=["tiny-dense", "tiny-moe"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OrtRuntime:
    out: Path = tmp_path_factory.mktemp("rows") / "bundle"
    return load(export(f"synthetic:{request.param}", out, precision="fp32"), threads=1)


def begin(runtime: OrtRuntime, *ids: int) -> Session:
    session = runtime.open(1)
    session.prefill([list(ids)])
    return session


def test_rows_that_join_and_leave_give_what_they_give_alone(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(3)
    alone = {name: begin(runtime, *range(name, name + 2 + name)) for name in (1, 4, 9)}
    places: list[int] = []

    def step(tokens: dict[int, int]) -> None:
        together = rows.decode([tokens[name] for name in places])
        for place, name in enumerate(places):
            expected = alone[name].decode([tokens[name]])[0]
            np.testing.assert_allclose(together[place], expected, **CLOSE)

    for name in (1, 4, 9):
        assert rows.join(alone[name].snapshot()) == len(places)
        places.append(name)
        step({1: 5, 4: 6, 9: 7})
        step({1: 15, 4: 16, 9: 17})
    rows.leave(0)
    places = [9, 4]  # the last took the place of the first
    step({4: 3, 9: 2})
    assert rows.lengths == (alone[9].lengths[0], alone[4].lengths[0])


def test_row_that_left_goes_on_in_a_session_where_it_was(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(2)
    other, moving = begin(runtime, 3, 4), begin(runtime, 5, 6, 7)
    rows.join(moving.snapshot())
    rows.join(other.snapshot())
    rows.decode([8, 9])
    moving.decode([8])
    session = runtime.open(1)
    session.restore(rows.leave(0))
    np.testing.assert_allclose(session.decode([1]), moving.decode([1]), **CLOSE)


def test_row_longer_than_the_first_buffers_is_kept_when_they_grow(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(2)
    short, long = begin(runtime, 1, 2), begin(runtime, *(i % 50 for i in range(511)))
    rows.join(short.snapshot())
    rows.join(long.snapshot())
    for token in (3, 4, 5):
        expected = [short.decode([token])[0], long.decode([token])[0]]
        np.testing.assert_allclose(rows.decode([token, token]), expected, **CLOSE)
    assert rows.lengths == (5, 514)


def test_last_row_that_leaves_gives_the_memory_back(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(1)
    rows.join(begin(runtime, *(i % 50 for i in range(600))).snapshot())
    grown = rows._capacity
    rows.leave(0)
    assert rows._capacity < grown


def test_row_that_stays_when_a_long_one_leaves_keeps_its_states(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(2)
    short, long = begin(runtime, 1, 2), begin(runtime, *(i % 50 for i in range(2100)))
    rows.join(short.snapshot())
    rows.join(long.snapshot())
    grown = rows._capacity
    rows.leave(1)
    assert rows._capacity < grown
    np.testing.assert_allclose(rows.decode([3]), short.decode([3]), **CLOSE)


def test_rows_go_on_where_there_is_no_memory_for_a_longer_one(
    runtime: OrtRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = runtime.open_rows(3)
    kept, long = begin(runtime, 1, 2), begin(runtime, *(i % 50 for i in range(600)))
    rows.join(kept.snapshot())

    def refuse(shape: tuple[int, ...]) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("runtimes.ort_rows.reserve", refuse)
        with pytest.raises(MemoryError):
            rows.join(long.snapshot())
    for token in (3, 4):
        np.testing.assert_allclose(rows.decode([token]), kept.decode([token]), **CLOSE)


def test_more_rows_than_places_are_refused(runtime: OrtRuntime) -> None:
    rows = runtime.open_rows(1)
    rows.join(begin(runtime, 1).snapshot())
    with pytest.raises(GenerationError, match="all 1 places are taken"):
        rows.join(begin(runtime, 2).snapshot())


def test_full_row_is_refused_and_nothing_is_appended(runtime: OrtRuntime) -> None:
    rows = OrtRows(runtime, 2, 4)
    rows.join(begin(runtime, 1, 2, 3, 4).snapshot())
    with pytest.raises(ContextOverflowError):
        rows.decode([1])
    assert rows.lengths == (4,)


def test_snapshot_of_several_rows_is_refused(runtime: OrtRuntime) -> None:
    session = runtime.open(2)
    session.prefill([[1], [2]])
    with pytest.raises(GenerationError, match="no row of this model"):
        runtime.open_rows(2).join(session.snapshot())
