"""Token ids of one answer -> the text that may be shown, up to its stop string.

Enters: ids as they are chosen. Leaves: text in whole characters. Knows nothing of models,
batches or what the text means.
"""

from __future__ import annotations

from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.stopping import StopScanner
from lfm2_deploy.tokenizer import TextStream, Tokenizer


class AnswerText:
    """The text of one answer while it grows."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: GenerationOptions,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        """Begin an answer.

        Args:
            tokenizer: the model's.
            options: its stop strings, and whether special tokens are shown.
            kept: special tokens to be shown in any case.
        """
        skips = options.skip_special_tokens
        self._stream = TextStream(tokenizer, skip_special_tokens=skips, kept=kept)
        self._scanner = StopScanner(options.stop)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._scanner.matched

    def push(self, token_id: int) -> str:
        """The text that a token lets out; "" after a stop string."""
        return self._scanner.push(self._stream.push(token_id))

    def flush(self) -> str:
        """The text still held back, at the answer's end."""
        return self._scanner.push(self._stream.flush()) + self._scanner.flush()
