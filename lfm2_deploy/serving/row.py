"""One running answer: what is left of its prompt, its tokens, its clock.

Enters: logits. Leaves: the next tokens to append. Knows nothing of other rows.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from lfm2_deploy.answer_text import AnswerText
from lfm2_deploy.answers.events import Answer, AnswerReason, Usage
from lfm2_deploy.branches import Lease
from lfm2_deploy.contracts import Capabilities, FloatArray
from lfm2_deploy.row_choice import RowChooser, list_end_ids
from lfm2_deploy.serving.request import Reply, Request
from lfm2_deploy.tokenizer import Tokenizer

# A prompt stops for a mark where it parts from another, if as much is gained by it.
_WORTH_A_MARK = 16


class Row:
    """A request that runs."""

    def __init__(
        self,
        request: Request,
        lease: Lease,
        tokenizer: Tokenizer,
        able: Capabilities,
        eos_token_ids: Collection[int],
    ) -> None:
        """Begin it.

        Args:
            request: what is asked for.
            lease: a branch that holds the beginning of its prompt.
            tokenizer: the model's.
            able: of the runtime.
            eos_token_ids: the model's end-of-turn tokens.
        """
        self.request, self.lease = request, lease
        self._able = able
        room = lease.branch.capacity - len(request.ids)
        most = min(room, request.options.max_new_tokens or room)
        ends = list_end_ids(request.options, eos_token_ids)
        self._chooser = RowChooser(request.ids, request.options, ends, most, request.constraint)
        self._reply = Reply(request, AnswerText(tokenizer, request.options, request.kept))
        self._position = lease.start.held[0]
        # Pieces of the prompt that were read.
        self.pieces = 0
        self._started_at = time.perf_counter()
        self._answering_at: float | None = None
        self._reason: AnswerReason | None = None
        # The last token, which the next step appends.
        self.last: int | None = None

    @property
    def is_prompting(self) -> bool:
        """Whether tokens of the prompt are still to be appended."""
        return self._position < len(self.request.ids)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to do."""
        return self._reason is not None

    @property
    def held(self) -> list[int]:
        """All tokens whose states are computed, in order."""
        return [*self.request.ids, *self._reply.token_ids[:-1]]

    def take_piece(self, size: int) -> list[int]:
        """The next tokens of the prompt, at most `size` where it can be cut."""
        start, ids = self._position, self.request.ids
        self.pieces += 1
        if not self._able.appends_many:
            end = start + 1 if start else len(ids)
        else:
            end = min(start + size, len(ids))
            shared = self.lease.shared
            if not self._able.chunk and start + _WORTH_A_MARK <= shared < end:
                end = shared
        self._position = end
        return list(ids[start:end])

    def choose(self, logits: FloatArray) -> None:
        """Choose the next token, and deliver what it lets out.

        Args:
            logits: float32 [V] after the last token.
        """
        if self._answering_at is None:
            self._answering_at = time.perf_counter()
        choice = self._chooser.choose(logits)
        self.last = choice.token_id
        is_text = choice.finish_reason != "stop"
        self._reply.push(choice.token_id, choice.logprobs, is_text)
        self._reason = "stop" if self._reply.stopped else choice.finish_reason

    def finish(self) -> Answer:
        """The whole answer; one that has no reason to end was cancelled."""
        now = time.perf_counter()
        answering_at = self._answering_at or now
        usage = Usage(
            prompt_tokens=len(self.request.ids),
            completion_tokens=len(self._reply.token_ids),
            reused_tokens=self.lease.start.held[0],
            queue_seconds=self._started_at - self.request.asked_at,
            prefill_seconds=answering_at - self._started_at,
            decode_seconds=now - answering_at,
        )
        return self._reply.finish(self._reason or "cancelled", usage)
