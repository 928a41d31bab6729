"""One row on a generator of onnxruntime-genai.

genai chooses no tokens here: every call appends tokens and reads the logits after the last.
(Of tokens that it chooses, the last one is not read before others are appended: 0.18.0.)
A generator holds one row, because genai pads shorter rows on the left, and padding would enter
conv states. It goes back nowhere: "RewindTo is currently not supported for lfm2" (0.18.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime_genai as og

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray, Mark, Snapshot
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.session_checks import check_rows, check_some_tokens

# Prompts are appended in pieces of this many tokens, which bounds activations' memory.
PREFILL_CHUNK = 512


class GenaiSession:
    """`contracts.Session` of one row."""

    batch_size = 1

    def __init__(
        self, find_model: Callable[[], Any], config: Lfm2Config, capacity: int, shares: bool
    ) -> None:
        """Open a row.

        Args:
            find_model: gives the `og.Model`, or raises where it was closed.
            config: the model's.
            capacity: most tokens of the row.
            shares: keys and values have room for all of them from the start; otherwise they are
                copied as they grow.
        """
        self._find_model, self._config = find_model, config
        self.capacity, self._shares = capacity, shares
        self.reset()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens the row holds now."""
        return (self._length,)

    def reset(self) -> None:
        """Empty the row: a fresh generator, made when it is needed."""
        self._generator: Any = None
        self._length, self._broken = 0, False

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens; see `contracts.Session.prefill`."""
        model = self._find_model()
        if self._broken:
            raise GenerationError("the last call failed half way: reset this session")
        check_rows(rows, self.lengths, self.capacity, self._config.vocab_size)
        check_some_tokens(rows)
        (row,) = rows
        self._generator = self._generator or self._open(model)
        for start in range(0, len(row), PREFILL_CHUNK):
            logits = self._append(row[start : start + PREFILL_CHUNK])
        return logits

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token; see `contracts.Session.decode`."""
        if list(tokens) == [None]:
            return np.zeros((1, self._config.vocab_size), np.float32)
        return self.prefill([[] if token is None else [token] for token in tokens])

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.score`: one by one is what is left, and `decode` does that."""
        raise GenerationError(
            "onnxruntime-genai gives the last position's logits only: append tokens one by one"
        )

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.propose`."""
        raise _refuse("take a proposal")

    def accept(self, counts: Sequence[int]) -> None:
        """See `contracts.Session.accept`."""
        raise GenerationError("there is no proposal to accept; this runtime takes none")

    def mark(self) -> Mark:
        """See `contracts.Session.mark`."""
        raise _refuse("set a mark")

    def rewind(self, mark: Mark) -> None:
        """See `contracts.Session.rewind`."""
        raise _refuse("rewind")

    def snapshot(self, mark: Mark | None = None) -> Snapshot:
        """See `contracts.Session.snapshot`."""
        raise _refuse("take a snapshot")

    def restore(self, snapshot: Snapshot) -> None:
        """See `contracts.Session.restore`."""
        raise _refuse("restore a snapshot")

    def _open(self, model: Any) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(
            max_length=self.capacity,
            batch_size=1,
            num_beams=1,
            past_present_share_buffer=self._shares,
        )
        return og.Generator(model, parameters)

    def _append(self, tokens: Sequence[int]) -> FloatArray:
        self._broken = True
        try:
            self._generator.append_tokens(np.array(tokens, np.int32))
            logits = self._generator.get_logits()
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise GenerationError(
                f"onnxruntime-genai fails after {self._length} tokens ({reason}): reset this "
                "session, or run the bundle with runtime ort"
            ) from error
        self._length += len(tokens)
        self._broken = False
        # [1, 1, V]: the graph gives the last position alone.
        last: FloatArray = np.array(logits, np.float32)[:, -1]
        return last


def _refuse(what: str) -> GenerationError:
    return GenerationError(
        f"onnxruntime-genai cannot {what} of an LFM2 model: reset the session and append the "
        "tokens again"
    )
