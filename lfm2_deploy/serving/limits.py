"""How an engine loads, what it takes on, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lfm2_deploy.errors import GenerationError
from lfm2_deploy.sampling import is_count


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading has come.

    Args:
        stage: "hashing", "loading", "checking" (the first time on a device) or "ready".
        done, total: of the stage, in its own units (bytes when hashing); total is 0 while unknown.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes on.

    Args:
        running: most answers that run at once; further ones wait.
        waiting: most answers that wait; further ones are refused (`QueueFullError`).
        kept: most conversations whose states are kept for what follows them.
        idle_seconds: unload the model after so long without a request; None keeps it. The next
            request loads it again.
        exact_rows: answers that run at once are computed one after the other, so that none
            changes another one's last bits. Otherwise, where the runtime can, they are computed
            together, several times as fast. What either leaves: with 8-bit activations (int8,
            int4), a prompt that is read in pieces, or whose beginning was read before, may round
            otherwise than one that is read at once.

    Raises:
        GenerationError: a value is out of range.
    """

    running: int = 4
    waiting: int = 32
    kept: int = 4
    idle_seconds: float | None = None
    exact_rows: bool = False

    def __post_init__(self) -> None:
        for name, least in (("running", 1), ("waiting", 0), ("kept", 0)):
            value = getattr(self, name)
            if not is_count(value) or value < least:
                raise GenerationError(f"{name} is {value!r}, expected an integer from {least}")
        if self.idle_seconds is not None and not self.idle_seconds > 0:
            raise GenerationError(
                f"idle_seconds is {self.idle_seconds!r}, expected a number above 0, or None"
            )


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine does at the moment, and did so far.

    Args:
        loaded: the model is in memory.
        running, waiting: answers.
        prompt_tokens, reused_tokens, completion_tokens: since the engine was made.
        answers: finished, by finish reason; "error" for those that failed.
        refused: requests, for a full queue.
        failure: why the model's thread ended, if a fault ended it; the next request loads the
            model again.
    """

    loaded: bool
    running: int
    waiting: int
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    answers: Mapping[str, int]
    refused: int
    failure: str = ""
