"""Recordings are replayed only where they give what plain calls give."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.contracts import FloatArray
from runtimes.gpu_capture import check_capture


class FakeRuntime:
    """A runtime whose replays are wrong from a token on, by a share of the logits."""

    def __init__(self, wrong_from: int, error: float, context_length: int = 64) -> None:
        self.captures, self.context_length = True, context_length
        self.config = SimpleNamespace(vocab_size=4)
        self.wrong_from, self.error = wrong_from, error
        self.opened: list[tuple[bool, int]] = []

    def open(self, batch_size: int, capacity: int) -> Any:
        self.opened.append((self.captures, capacity))
        steps = iter(range(capacity))

        def decode(tokens: Sequence[int]) -> FloatArray:
            step = next(steps)
            if self.captures and self.error == np.inf:
                raise RuntimeError("cannot record")
            off = self.error if self.captures and step >= self.wrong_from else 0.0
            return np.full((1, 4), 2.0 + off * 2.0, np.float32) * (1 + tokens[0])

        return SimpleNamespace(decode=decode)


def test_replays_that_are_right_are_kept() -> None:
    runtime: Any = FakeRuntime(0, 0.0)
    check_capture(runtime)
    assert runtime.captures
    assert runtime.opened == [(True, 6), (False, 6)]


@pytest.mark.parametrize("wrong_from", [0, 2, 5])
def test_replays_that_are_wrong_are_given_up(wrong_from: int) -> None:
    runtime: Any = FakeRuntime(wrong_from, 0.01)
    check_capture(runtime)
    assert not runtime.captures


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_replays_that_are_no_numbers_or_refused_are_given_up(error: float) -> None:
    runtime: Any = FakeRuntime(0, error)
    check_capture(runtime)
    assert not runtime.captures


def test_short_context_is_not_exceeded() -> None:
    runtime: Any = FakeRuntime(0, 0.0, context_length=3)
    check_capture(runtime)
    assert runtime.captures
    assert {capacity for _, capacity in runtime.opened} == {3}


def test_runtime_that_records_nothing_is_left_alone() -> None:
    runtime: Any = FakeRuntime(0, 0.0)
    runtime.captures = False
    check_capture(runtime)
    assert not runtime.captures
    assert runtime.opened == []
