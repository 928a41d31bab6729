"""What an answer must follow, where the model reasons first: from the reasoning's end on.

Enters: a constraint, and tokens as they come. Leaves: logits, untouched up to `</think>`. Only
for prompts that open the reasoning themselves; whether a model would begin to reason on its own
accord nobody knows beforehand.
"""

from __future__ import annotations

from lfm2_deploy.answers.marks import THINK_END
from lfm2_deploy.constraints import Constraint
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.tokenizer import Tokenizer

_END = THINK_END.encode()


class AfterReasoning:
    """A `Constraint` that lets reasoning through."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer) -> None:
        """Begin inside the reasoning.

        Args:
            constraint: for what follows it.
            tokenizer: the model's.
        """
        self._constraint, self._tokenizer = constraint, tokenizer
        self._is_reasoning, self._tail = True, b""

    @property
    def is_finished(self) -> bool:
        """See `Constraint`."""
        return not self._is_reasoning and self._constraint.is_finished

    def mask(self, logits: FloatArray) -> FloatArray:
        """See `Constraint`."""
        return logits if self._is_reasoning else self._constraint.mask(logits)

    def accept(self, token_id: int) -> None:
        """See `Constraint`; what a token holds after the mark is not part of the answer's form."""
        if not self._is_reasoning:
            self._constraint.accept(token_id)
            return
        self._tail += self._tokenizer.token_bytes(token_id)
        self._is_reasoning = _END not in self._tail
        self._tail = self._tail[-len(_END) :]
