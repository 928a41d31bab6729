"""Rates from a scripted clock, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy.bench.measure import Trial, measure
from runtimes.fake import FakeRuntime, FakeSession, hash_logits


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedSession(FakeSession):
    """Prompts take a second for 100 tokens, single tokens half a second."""

    clock: Clock

    def prefill(self, rows):  # type: ignore[no-untyped-def]
        self.clock.now += len(rows[0]) / 100
        return super().prefill(rows)

    def decode(self, tokens):  # type: ignore[no-untyped-def]
        self.clock.now += 0.5
        return super().decode(tokens)


def test_rates_are_tokens_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("runtimes.fake.FakeSession", TimedSession)
    monkeypatch.setattr(TimedSession, "clock", clock, raising=False)
    loads = iter((8.0, 2.0))
    runtimes: list[FakeRuntime] = []

    def load() -> FakeRuntime:
        clock.now += next(loads)
        runtimes.append(FakeRuntime(hash_logits(50), vocab_size=50, context_length=600))
        return runtimes[-1]

    result = measure(load, Trial((100, 400), decode=4, rounds=3), clock=clock)
    assert (result.load_cold_s, result.load_warm_s) == (8.0, 2.0)
    assert result.first_token_cold_ms == pytest.approx(1000)
    short, long = result.speeds
    assert (short.context, long.context) == (100, 400)
    assert short.prefill == long.prefill == pytest.approx(100)
    assert short.decode == long.decode == pytest.approx(2)
    assert long.first_token_ms == pytest.approx(4000)
    assert short.decode_range == (pytest.approx(2), pytest.approx(2))
    assert all(runtime.closed for runtime in runtimes)


def test_median_of_the_rounds_counts_and_the_ends_are_told() -> None:
    clock = Clock()
    speeds = iter((1.0, 1.0, 2.0, 10.0))  # the first is the cold prompt's

    class Uneven(FakeRuntime):
        def open(self, batch_size: int = 1, capacity: int | None = None) -> FakeSession:
            session = super().open(batch_size, capacity)
            prefill = session.prefill

            def slow(rows):  # type: ignore[no-untyped-def]
                clock.now += next(speeds)
                return prefill(rows)

            session.prefill = slow  # type: ignore[method-assign]
            decode = session.decode

            def step(tokens):  # type: ignore[no-untyped-def]
                clock.now += 1.0
                return decode(tokens)

            session.decode = step  # type: ignore[method-assign]
            return session

    def load() -> FakeRuntime:
        return Uneven(hash_logits(50), vocab_size=50)

    (speed,) = measure(load, Trial((20,), decode=2, rounds=3), clock=clock).speeds
    assert speed.prefill == pytest.approx(10)  # 20 tokens in 2 s
    assert speed.prefill_range == (pytest.approx(2), pytest.approx(20))


def test_picture_is_drawn(tmp_path: Path) -> None:
    from lfm2_deploy.bench.plot import draw

    speeds = [
        {"context": context, "prefill": 900.0, "decode": 100.0, "bound": 150.0}
        for context in (256, 1024)
    ]
    for name in ("speed.png", "speed.svg"):
        draw({"a": {"speeds": speeds}, "b": {"speeds": speeds[:1]}}, tmp_path / name)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "speed.svg").read_text()
    assert svg.count("memory's bound") or "bound" in svg
