"""What is read of every model for a comparison."""

from __future__ import annotations

import pytest

from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.reference import SHORT_ROW, STATE_ROWS, list_requests


def make_windows(count: int, length: int) -> Windows:
    rows = [range(number * length, (number + 1) * length) for number in range(count)]
    return Windows(tuple(tuple(row) for row in rows), 9999, "numbers")


@pytest.mark.parametrize(("count", "long"), [(1, 3), (2, 3), (4, 4), (20, STATE_ROWS)])
def test_states_are_taken_after_several_rows_of_both_lengths(count: int, long: int) -> None:
    windows = make_windows(count, 64)
    requests = list_requests(windows)
    assert [request.tokens for request in requests[:count]] == [
        windows.read_by(number) for number in range(count)
    ]
    rows = [tuple(request.tokens) for request in requests if request.states]
    lengths = [len(row) for row in rows]
    assert (lengths.count(63), lengths.count(SHORT_ROW)) == (long, STATE_ROWS)
    # Each from the start token on, and no two end alike, which is what convolutions remember.
    assert {row[0] for row in rows} == {9999}
    for size in (63, SHORT_ROW):
        ends = [row[-2:] for row in rows if len(row) == size]
        assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("length", [8, 9, 16])
def test_rows_of_the_shortest_windows_fit_them(length: int) -> None:
    for request in list_requests(make_windows(1, length)):
        assert 0 < len(request.tokens) < length
        assert request.first < len(request.tokens)
