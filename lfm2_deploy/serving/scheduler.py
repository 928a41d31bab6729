"""Requests of many threads -> one thread that runs the model.

Enters: requests. Leaves: their events. Waiting requests join between tokens; a long prompt is
appended in pieces, with a token for everybody in between; prompts that begin alike are read
once. Knows nothing of how a model is loaded, or of who asks.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

from lfm2_deploy.answers.events import Answer, Finished
from lfm2_deploy.branches import BranchPool, count_common
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import ClosedError, GenerationError, QueueFullError
from lfm2_deploy.generate import LanguageModel, choose_slice
from lfm2_deploy.serving.limits import EngineLimits
from lfm2_deploy.serving.request import Request, cancel_unstarted
from lfm2_deploy.serving.row import Row
from lfm2_deploy.serving.steps import Steps

# A prompt is read in pieces between two tokens of the answers beside it, which wait so long.
_MOST_BESIDE, _LEAST_BESIDE, _SECONDS_BESIDE = 128, 16, 0.25
# A request waits for one whose prompt is being read, if they have so many tokens in common.
_WORTH_WAITING = 64


class IdleEndError(ClosedError):
    """The scheduler ended because nobody asked anything for a while."""


class FaultError(ClosedError):
    """The scheduler ended by a fault of its own."""


class Totals:
    """What was done so far; read by any thread, written by the scheduler's."""

    def __init__(self) -> None:
        self.prompt_tokens = self.reused_tokens = self.completion_tokens = self.refused = 0
        self.answers: Counter[str] = Counter()

    def add(self, answer: Answer) -> None:
        """Count an answer that ended, and its prompt where that was begun: once for all choices."""
        if answer.choice == 0 and answer.usage.prefill_seconds > 0:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.reused_tokens += answer.usage.reused_tokens
        self.completion_tokens += answer.usage.completion_tokens
        self.answers[answer.finish_reason] += 1


def choose_piece(seconds_per_token: float, chunk: int) -> int:
    """How many tokens of a prompt to read while answers wait.

    Args:
        seconds_per_token: what one took lately; 0 where that is not known.
        chunk: of a runtime with fixed shapes, which takes as long for fewer; else 0.
    """
    fit = int(_SECONDS_BESIDE / seconds_per_token) if seconds_per_token > 0 else _MOST_BESIDE
    return max(chunk, _LEAST_BESIDE, min(fit, _MOST_BESIDE))


class Scheduler:
    """Runs one model in a thread of its own.

    `model` is the model, and None after the end.
    """

    def __init__(
        self,
        model: LanguageModel,
        limits: EngineLimits,
        totals: Totals,
    ) -> None:
        """Start the thread.

        Args:
            model: belongs to the thread from then on, which closes and forgets it at its end.
            limits: of rows, and of idleness.
            totals: to count in.
        """
        self._model, self._limits, self._totals = model, limits, totals
        self.model: LanguageModel | None = model
        self._able = model.runtime.info.capabilities
        self._pool = BranchPool(model.runtime, limits.running + limits.kept)
        self._steps = Steps(model.runtime, limits.running, not limits.exact_rows)
        self._seconds_per_token = 0.0  # of the last piece of a prompt
        self._rows: list[Row] = []
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        # Between the two above.
        self._beginning: Request | None = None
        self._end: ClosedError | None = None
        self._draining = False
        self._thread = threading.Thread(target=self._run, name="lfm2-deploy engine", daemon=True)
        # A thread that is inside a backend while Python ends would bring the process down.
        atexit.register(self.end)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Rows that run, and requests that wait."""
        return len(self._rows), len(self._waiting)

    @property
    def has_ended(self) -> bool:
        """Whether it takes nothing any more."""
        return self._end is not None

    @property
    def may_be_replaced(self) -> bool:
        """Whether it ended for want of work or by a fault: another one may be started."""
        return isinstance(self._end, IdleEndError | FaultError)

    @property
    def failure(self) -> str:
        """The fault it ended by; "" for none."""
        return str(self._end) if isinstance(self._end, FaultError) else ""

    def check_room(self, count: int) -> None:
        """See, before any work on them, that so many requests would be taken.

        Raises:
            GenerationError: there is never room for so many.
            QueueFullError, ClosedError: as `submit`.
        """
        most = self._limits.running + self._limits.waiting
        if count > most:
            raise GenerationError(f"{count} answers at once, and at most {most} are taken on")
        with self._changed:
            self._require_room(count)

    def submit(self, requests: Sequence[Request]) -> None:
        """Put requests into the queue, all or none.

        Raises:
            QueueFullError: too many wait already.
            ClosedError: the scheduler ends; see `may_be_replaced`.
        """
        with self._changed:
            self._require_room(len(requests))
            self._waiting.extend(requests)
            self._changed.notify_all()

    def _require_room(self, count: int) -> None:
        if self._end is not None:
            raise self._end
        if self._draining:
            raise ClosedError("the engine is shutting down and takes no more requests")
        running = len(self._rows) + (self._beginning is not None)
        room = self._limits.waiting + max(0, self._limits.running - running)
        if len(self._waiting) + count > room:
            self._totals.refused += 1
            raise QueueFullError(
                f"{running} answers run and {len(self._waiting)} wait, which is all that is taken "
                "on: try again later"
            )

    def wake(self) -> None:
        """Look at requests again: one was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Take no more requests, and wait for those there are; whether all ended in time."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._has_work(), timeout)

    def end(self) -> None:
        """Cancel everything, and wait for the thread."""
        with self._changed:
            if self._end is None:
                self._end = ClosedError("the engine was closed: load the model again")
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._admit()
                self._read_prompts()
                self._answer()
        except Exception as error:  # who waits is told, and who asks later
            self._fail_all(error)
        finally:
            atexit.unregister(self.end)
            self._free()

    def _free(self) -> None:
        """Close the model and forget it: its memory is free when nobody else holds it."""
        self._model.runtime.close()
        self.model = None
        del self._model, self._pool, self._steps

    def _wait_for_work(self) -> bool:
        """Whether there is any; false when the thread is to end."""
        with self._changed:
            if self._has_work():
                return True
            self._changed.notify_all()  # for `drain`
            busy = self._changed.wait_for(
                lambda: bool(self._waiting or self._end), self._limits.idle_seconds
            )
            if not busy:
                self._end = IdleEndError("the model was unloaded: ask again to load it")
            return self._end is None or bool(self._waiting)

    def _has_work(self) -> bool:
        return bool(self._rows or self._waiting or self._beginning)

    def _admit(self) -> None:
        while len(self._rows) < self._limits.running and self._take_request() is not None:
            row = self._begin()
            logits = None if row is None else row.lease.start.logits
            if row is not None and logits is not None and not row.is_prompting:
                self._choose(row, logits[0])

    def _take_request(self) -> Request | None:
        """The first in the queue that need not wait for another one's prompt."""
        with self._changed:
            for place, request in enumerate(self._waiting):
                if not self._should_wait(request):
                    del self._waiting[place]
                    self._beginning = request
                    return request
        return None

    def _begin(self) -> Row | None:
        """Make a row of the request that was taken; None where that fails."""
        request, row = self._beginning, None
        assert request is not None
        try:
            lease = self._pool.lease(request.ids)
            try:
                end_ids = self._model.runtime.config.eos_token_ids
                row = Row(request, lease, self._model.tokenizer, self._able, end_ids)
            except Exception:
                self._pool.drop(lease)
                raise
        except Exception as error:  # the reader is told whatever it is
            self._totals.answers["error"] += 1
            request.deliver(error)
        with self._changed:
            self._beginning = None
            if row is not None:
                self._rows.append(row)
        return row

    def _should_wait(self, request: Request) -> bool:
        """Whether a prompt that is being read begins as this one does: then it is read once."""
        if not self._able.rewinds or request.cancelled.is_set():
            return False
        for row in self._rows:
            if row.is_prompting:
                common = count_common(row.request.ids, request.ids)
                if common >= min(_WORTH_WAITING, len(request.ids)):
                    return True
        return False

    def _drop_cancelled(self) -> None:
        with self._changed:
            if self._end is not None:
                for request in (*self._waiting, *(row.request for row in self._rows)):
                    request.cancelled.set()
        for row in tuple(self._rows):
            if row.request.cancelled.is_set():
                self._finish(row)
        with self._changed:
            gone = [request for request in self._waiting if request.cancelled.is_set()]
            for request in gone:
                self._waiting.remove(request)
        for request in gone:
            self._tell_end(request, cancel_unstarted(request))

    def _read_prompts(self) -> None:
        """A piece of one prompt; they take turns, so that short ones do not wait for long ones."""
        prompting = [row for row in self._rows if row.is_prompting]
        if not prompting:
            return
        row = min(prompting, key=lambda one: one.pieces)
        size = choose_slice(self._able) or len(row.request.ids)
        if len(self._rows) > 1:
            size = min(size, choose_piece(self._seconds_per_token, self._able.chunk))
        piece = row.take_piece(size)
        started = time.perf_counter()
        try:
            logits = row.lease.branch.prefill([piece])
        except Exception as error:  # whatever a runtime may raise
            self._fail(row, error)
            return
        self._seconds_per_token = (time.perf_counter() - started) / len(piece)
        if not row.is_prompting:
            self._choose(row, logits[0])

    def _answer(self) -> None:
        """A token for every row whose prompt is read."""
        rows = [row for row in self._rows if row.last is not None and not row.ended]
        for row, outcome in self._steps.decode(rows):
            if isinstance(outcome, Exception):
                self._fail(row, outcome)
            else:
                self._choose(row, outcome)
        for row in [row for row in self._rows if row.ended]:
            self._finish(row)

    def _choose(self, row: Row, logits: FloatArray) -> None:
        try:
            row.choose(logits)
        except Exception as error:  # such as logits that are not finite
            self._fail(row, error)

    def _fail(self, row: Row, error: Exception) -> None:
        """End a row with an error; others go on."""
        self._rows.remove(row)
        self._steps.leave(row, keep=False)
        self._pool.drop(row.lease)
        self._totals.answers["error"] += 1
        row.request.deliver(error)

    def _finish(self, row: Row) -> None:
        self._rows.remove(row)
        try:
            self._steps.leave(row, keep=True)
            self._pool.release(row.lease, row.request.ids)
        except Exception:  # the answer is complete; only what might follow it is not kept
            self._pool.drop(row.lease)
        self._tell_end(row.request, row.finish())

    def _tell_end(self, request: Request, answer: Answer) -> None:
        self._totals.add(answer)  # first, so that who knows of the end finds it counted
        request.deliver(Finished(answer))

    def _fail_all(self, error: Exception) -> None:
        """The thread ends by a fault of its own: nobody must wait for it forever."""
        with self._changed:
            self._end = FaultError(f"the engine stopped: {error}; load the model again")
            requests = [*(row.request for row in self._rows), *self._waiting]
            requests += [] if self._beginning is None else [self._beginning]
            self._rows.clear()
            self._waiting.clear()
            self._beginning = None
            self._changed.notify_all()
        for request in requests:
            request.deliver(error)
