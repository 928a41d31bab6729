"""What an engine does not take on is told at once."""

from __future__ import annotations

import pytest

from lfm2_deploy.errors import (
    ClosedError,
    ContextOverflowError,
    GenerationError,
    QueueFullError,
)
from lfm2_deploy.serving.engine import EngineLimits

from .asking import PROMPT
from .conftest import VOCAB, Gate, MakeEngine


def test_full_queue_refuses_and_takes_requests_again_later(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(running=1, waiting=2)
    gate.shut()
    streams = [engine.stream(PROMPT, max_new_tokens=2)]
    assert gate.reached.wait(20)
    streams += [engine.stream(PROMPT, max_new_tokens=2) for _ in range(2)]
    with pytest.raises(QueueFullError, match="1 answers run and 2 wait"):
        engine.stream(PROMPT)
    assert (engine.state.running, engine.state.waiting, engine.state.refused) == (1, 2, 1)
    gate.open.set()
    assert [len(stream.answers()[0].token_ids) for stream in streams] == [2, 2, 2]
    assert len(engine.generate(PROMPT, max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ([], {}, GenerationError),
        ([VOCAB], {}, GenerationError),
        (PROMPT, {"max_new_tokens": 5000}, ContextOverflowError),
        (PROMPT, {"n": 0}, GenerationError),
        ("text", {"tools": [{"name": "f"}]}, GenerationError),
        (PROMPT, {"temperature": -1}, GenerationError),
    ],
)
def test_request_that_cannot_run_is_refused_at_once(
    make_engine: MakeEngine, prompt: object, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_engine().stream(prompt, **options)


def test_closed_engine_refuses(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.close()
    with pytest.raises(ClosedError, match="closed"):
        engine.generate(PROMPT)
    assert engine.state.loaded is False


def test_draining_engine_finishes_what_runs_and_refuses_more(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.shut()
    stream = engine.stream(PROMPT, max_new_tokens=3)
    assert gate.reached.wait(20)
    assert engine.drain(timeout=0.01) is False
    with pytest.raises(ClosedError, match="shutting down"):
        engine.stream(PROMPT)
    gate.open.set()
    assert engine.drain(timeout=20) is True
    assert len(stream.answers()[0].token_ids) == 3


@pytest.mark.parametrize("limits", [{"running": 0}, {"waiting": -1}, {"idle_seconds": 0.0}])
def test_limits_out_of_range_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(GenerationError, match=next(iter(limits))):
        EngineLimits(**limits)
