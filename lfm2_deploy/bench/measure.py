"""A runtime and a clock -> seconds and rates.

Enters: how to load a runtime, and what to try. Leaves: one `Measurement`. Knows contracts
and no backend; the same calls are timed that generation makes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lfm2_deploy.contracts import Runtime, Session

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """What to measure.

    Args:
        contexts: prompt lengths, in tokens.
        decode: tokens to decode after each prompt.
        rounds: how often; medians are taken.
    """

    contexts: tuple[int, ...]
    decode: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Speed:
    """At one context length; rates are tokens a second, medians over rounds.

    Args:
        context: tokens of the prompt.
        prefill: rate of the prompt.
        prefill_range: the slowest and the fastest round.
        decode: rate of single tokens after it.
        decode_range: the slowest and the fastest round.
        first_token_ms: from the prompt to its first token, milliseconds.
    """

    context: int
    prefill: float
    prefill_range: tuple[float, float]
    decode: float
    decode_range: tuple[float, float]
    first_token_ms: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one bundle.

    Args:
        load_cold_s: the first load, seconds.
        load_warm_s: a later one, when files are in memory.
        first_token_cold_ms: of the first prompt after the first load, milliseconds.
        speeds: one entry for each context.
    """

    load_cold_s: float
    load_warm_s: float
    first_token_cold_ms: float
    speeds: tuple[Speed, ...]

    def describe(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def measure(
    load: Callable[[], Runtime],
    trial: Trial,
    tell: Callable[[str], None] = lambda what: None,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Load a runtime twice, and time prompts and tokens on the second.

    Args:
        load: loads the same bundle each time.
        trial: what to try.
        tell: hears what is done.
        clock: seconds.
    """
    tell("loading")
    started = clock()
    runtime = load()
    cold = clock() - started
    first = _time_first_token(runtime, trial.contexts[0], clock)
    runtime.close()
    tell("loading again")
    started = clock()
    runtime = load()
    warm = clock() - started
    speeds = []
    for context in trial.contexts:
        tell(f"context of {context:,}")
        speeds.append(_measure_context(runtime, context, trial, clock))
    runtime.close()
    return Measurement(cold, warm, first * 1000, tuple(speeds))


def _time_first_token(runtime: Runtime, context: int, clock: Clock) -> float:
    session = runtime.open(1, context + 1)
    prompt = _make_prompt(runtime, context)
    started = clock()
    session.prefill([prompt])[0].argmax()
    return clock() - started


def _measure_context(runtime: Runtime, context: int, trial: Trial, clock: Clock) -> Speed:
    session = runtime.open(1, context + trial.decode)
    prompt = _make_prompt(runtime, context)
    prefills, decodes = [], []
    for _ in range(trial.rounds):
        session.reset()
        prefill, decode = _run(session, prompt, trial.decode, clock)
        prefills.append(prefill)
        decodes.append(decode)
    return Speed(
        context,
        *_summarize([context / seconds for seconds in prefills]),
        *_summarize([trial.decode / seconds for seconds in decodes]),
        median(prefills) * 1000,
    )


def _run(session: Session, prompt: list[int], count: int, clock: Clock) -> tuple[float, float]:
    started = clock()
    token = int(session.prefill([prompt])[0].argmax())
    prefilled = clock()
    for _ in range(count):
        token = int(session.decode([token])[0].argmax())
    return prefilled - started, clock() - prefilled


def _summarize(rates: Sequence[float]) -> tuple[float, tuple[float, float]]:
    return median(rates), (min(rates), max(rates))


def _make_prompt(runtime: Runtime, length: int) -> list[int]:
    """Tokens at random, always the same: what they say does not change how long they take."""
    numbers = random.Random(0)
    return [numbers.randrange(runtime.config.vocab_size) for _ in range(length)]
