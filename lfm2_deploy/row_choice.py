"""The logits of one row -> its next token, and whether the row ends there.

Enters: a prompt's ids and options, then logits [V] in the order of the tokens. Leaves: one
`Choice` a token. Knows nothing of sessions, batches or text, so whatever runs rows may use it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.constraints import Constraint
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import Sampler, TokenLogprobs, measure_logprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """One new token of a row.

    Args:
        token_id: the token, an end-of-turn token included.
        finish_reason: why the row ends with it, or None if it goes on.
        logprobs: the model's own, where asked for.
    """

    token_id: int
    finish_reason: Literal["stop", "length"] | None
    logprobs: TokenLogprobs | None


class RowChooser:
    """Chooses the tokens of one row, one after the other, until it ends.

    A row's choices depend on its own prompt, options and logits alone. Tokens that were guessed
    are judged by calling `choose` for each place in order, up to the first that differs.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        end_ids: Collection[int],
        most_new_tokens: int,
        constraint: Constraint | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            prompt_ids: the whole prompt; the repetition penalty counts it.
            options: how to choose, and which log-probabilities to measure.
            end_ids: tokens that end the answer; see `list_end_ids`.
            most_new_tokens: the answer is cut after so many, at least one.
            constraint: what the answer must follow, of this row alone; None for nothing.
        """
        self._sampler = Sampler(options.sampling, prompt_ids)
        self._top = options.logprobs
        self._end_ids = frozenset(end_ids)
        self._left = most_new_tokens
        self._constraint = constraint

    @property
    def left(self) -> int:
        """How many tokens may still be chosen."""
        return self._left

    def choose(self, logits: FloatArray) -> Choice:
        """Choose the next token, and remember it.

        Args:
            logits: float32 [V] after the last token; not changed.

        Raises:
            GenerationError: the logits are not finite.
        """
        allowed = logits if self._constraint is None else self._constraint.mask(logits)
        token_id = self._sampler.sample(allowed)
        if self._constraint is not None:
            self._constraint.accept(token_id)
        self._left -= 1
        # What the model itself thinks, whatever is allowed.
        logprobs = None if self._top is None else measure_logprobs(logits, token_id, self._top)
        return Choice(token_id, self._judge_end(token_id), logprobs)

    def _judge_end(self, token_id: int) -> Literal["stop", "length"] | None:
        complete = self._constraint is not None and self._constraint.is_finished
        if token_id in self._end_ids or complete:
            return "stop"
        return "length" if self._left == 0 else None


def list_end_ids(options: GenerationOptions, eos_token_ids: Collection[int]) -> frozenset[int]:
    """The tokens that end an answer.

    Args:
        options: with stop tokens of the caller's, and perhaps `ignore_eos`.
        eos_token_ids: the model's own end-of-turn tokens.
    """
    if options.ignore_eos:
        return frozenset(options.stop_token_ids)
    return frozenset((*options.stop_token_ids, *options.eos_token_ids, *eos_token_ids))
