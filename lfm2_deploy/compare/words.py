"""Token ids -> text for people; ids themselves where there is no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfm2_deploy.compare.metrics import top_ids
from lfm2_deploy.compare.result import Candidate
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.tokenizer import Tokenizer

_CANDIDATES = 3


class Words:
    """Text of tokens.

    Args:
        tokenizer: None where there is none.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def read(self, ids: Sequence[int]) -> str:
        """The text of several tokens; special ones are written out."""
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def candidate(self, token_id: int, probability: float) -> Candidate:
        """A token with its probability."""
        return Candidate(int(token_id), self.read([int(token_id)]), float(probability))

    def list_candidates(self, log_probabilities: FloatArray) -> tuple[Candidate, ...]:
        """The likeliest tokens of one position [V], likeliest first."""
        ids = top_ids(log_probabilities[None], _CANDIDATES)[0]
        return tuple(self.candidate(i, float(np.exp(log_probabilities[i]))) for i in ids)
