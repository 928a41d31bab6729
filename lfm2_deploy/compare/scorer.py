"""Rows of tokens -> logits and states, from anything that can run a model.

A `Scorer` is what truth and subjects have in common: a runtime, one row after another, or
the torch reference, all rows layer by layer (`runtimes.streamed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Progress, Runtime, Session
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.states import StateSpec

# State input name -> one row's state, float32: conv [H, L-1], keys and values [KV, S, D].
States = Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Request:
    """A row to read from an empty state.

    Args:
        tokens: its ids.
        first: logits are wanted after this position and all that follow.
        states: whether the states after the last token are wanted.
    """

    tokens: Sequence[int]
    first: int
    states: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a request: logits float32 [len - first, V], and states where asked for."""

    logits: FloatArray
    states: States | None


class Scorer(Protocol):
    """What can read rows of tokens."""

    @property
    def config(self) -> Lfm2Config:
        """The model's config."""

    def score(self, requests: Sequence[Request], progress: Progress) -> Iterator[Scored]:
        """Answer each request, in order."""

    def close(self) -> None:
        """Free the weights."""


@runtime_checkable
class _Named(Protocol):
    """A snapshot whose states can be looked at."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """State input name -> array [1, ...]."""


class RuntimeScorer:
    """A `Scorer` on a runtime.

    Args:
        runtime: closed with the scorer.
        states: how its states are laid out.
        what: for progress.
    """

    def __init__(self, runtime: Runtime, states: Sequence[StateSpec], what: str) -> None:
        self.runtime, self.config = runtime, runtime.config
        self._specs, self._what = states, what

    def score(self, requests: Sequence[Request], progress: Progress) -> Iterator[Scored]:
        """Answer each request, in order, in one session.

        Raises:
            GenerationError: a row does not fit, or logits are not finite.
        """
        longest = max(len(request.tokens) for request in requests)
        session = self.runtime.open(1, longest)
        for done, request in enumerate(requests):
            progress(self._what, done, len(requests))
            session.reset()
            logits = read_row(session, self.runtime, request)
            check_finite(logits, request.first, done)
            yield Scored(logits, self._take_states(session) if request.states else None)
        progress(self._what, len(requests), len(requests))

    def close(self) -> None:
        """Free the weights."""
        self.runtime.close()

    def _take_states(self, session: Session) -> States | None:
        try:
            snapshot = session.snapshot()
        except (GenerationError, NotImplementedError):
            return None
        if not isinstance(snapshot, _Named):
            return None
        return lay_out_states(snapshot.arrays, self._specs, self.config)


def read_row(session: Session, runtime: Runtime, request: Request) -> FloatArray:
    """Append a row to an empty session; logits [len - first, V] from its `first` position on.

    Where logits of every position are to be had, only the part that is wanted asks for them,
    which halves the memory; where not, that part is appended token by token.
    """
    can = runtime.info.capabilities
    tokens, first = list(request.tokens), request.first
    if can.scores_all and (can.appends_many or first == 0):
        if first:
            session.prefill([tokens[:first]])
        return session.score([tokens[first:]])[0]
    if can.scores_all:
        return session.score([tokens])[0][first:].copy()
    parts = [session.prefill([tokens[: first + 1]])[0].copy()]
    parts += [session.decode([token])[0].copy() for token in tokens[first + 1 :]]
    return np.stack(parts)


def lay_out_states(
    arrays: Mapping[str, NDArray[Any]], specs: Sequence[StateSpec], config: Lfm2Config
) -> States:
    """A snapshot's arrays [1, ...] in the one layout of `States`."""
    channels_last = (config.conv_state_width, config.hidden_size)
    result = {}
    for spec in specs:
        array = np.asarray(arrays[spec.input], np.float32)[0]
        if spec.kind == "conv" and tuple(spec.shape[1:]) == channels_last:
            array = array.T
        result[spec.input] = array.copy()
    return result


def check_finite(logits: FloatArray, first: int, row: int) -> None:
    """Refuse logits [N, V] that hold NaN or infinity.

    Args:
        logits: of one row.
        first: the position of the first of them.
        row: its number.

    Raises:
        GenerationError: with how many positions they are, and where.
    """
    wrong = ~np.isfinite(logits).all(-1)
    if wrong.any():
        at = first + int(wrong.argmax())
        raise GenerationError(
            f"gives logits that are not finite (NaN or infinity) at {int(wrong.sum())} positions, "
            f"first at position {at} of row {row}: its arithmetic overflows, or a weight is damaged"
        )
