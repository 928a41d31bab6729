"""What an answer must follow, token by token.

Enters: the logits of one row. Leaves: the same with every token forbidden that cannot come next.
"""

from __future__ import annotations

from typing import Protocol

from lfm2_deploy.contracts import FloatArray


class Constraint(Protocol):
    """What one answer must follow; it knows how far the answer has come."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete and was ended."""

    def mask(self, logits: FloatArray) -> FloatArray:
        """Forbid what cannot come next.

        Args:
            logits: float32 [V]; not changed.

        Returns:
            float32 [V]; forbidden tokens are -inf.
        """

    def accept(self, token_id: int) -> None:
        """Go on past a token that `mask` allowed."""
