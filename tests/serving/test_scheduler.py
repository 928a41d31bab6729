"""How long answers wait for somebody else's prompt."""

from __future__ import annotations

import pytest

from lfm2_deploy.serving.scheduler import choose_piece


@pytest.mark.parametrize(
    ("seconds_per_token", "chunk", "expected"),
    [
        (0.0, 0, 128),  # nothing is known yet
        (0.0001, 0, 128),  # fast: more would make answers wait for no gain
        (0.005, 0, 50),  # a quarter of a second
        (0.1, 0, 16),  # slow: fewer would read the weights for almost nothing
        (0.1, 64, 64),  # a part of a chunk takes as long as the whole
    ],
)
def test_piece_of_a_prompt_takes_a_quarter_of_a_second(
    seconds_per_token: float, chunk: int, expected: int
) -> None:
    assert choose_piece(seconds_per_token, chunk) == expected
