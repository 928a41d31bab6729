"""What was computed for earlier prompts, so that the next one computes only what is new.

Enters: token ids of a prompt. Leaves: a session that holds as much of them as is known,
and how much that is; `branches` finds it. Knows nothing of text or backends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lfm2_deploy.branches import BranchPool
from lfm2_deploy.contracts import Runtime, Session
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.prefix_store import PrefixStore
from lfm2_deploy.tokens import Start


class PromptCache:
    """Sessions of one row that remember what they hold.

    One generation at a time may use it; threads take turns, or have a cache each.
    """

    def __init__(
        self, runtime: Runtime, *, branches: int = 4, store: PrefixStore | None = None
    ) -> None:
        """Make an empty one.

        Args:
            runtime: the model.
            branches: most conversations held at once; the one used longest ago makes room.
                Each takes the memory of its keys and values.
            store: prefixes on disk, for prompts that none of them knows.

        Raises:
            GenerationError: branches is below 1.
        """
        self.runtime = runtime
        self._pool = BranchPool(runtime, branches, store)
        self._lock = threading.Lock()

    @contextmanager
    def reuse(self, ids: Sequence[int]) -> Iterator[tuple[Session, Start]]:
        """A session that holds what is known of a prompt, for one generation.

        Args:
            ids: the prompt, which `tokens.generate_tokens` is to be given whole.

        Raises:
            GenerationError: another generation is using this cache.
        """
        if not self._lock.acquire(blocking=False):
            raise GenerationError(
                "another generation is using this prompt cache: finish or close its stream "
                "first, or give it a cache of its own"
            )
        try:
            lease = self._pool.lease(ids)
            try:
                yield lease.branch, lease.start
            finally:  # also where the reader had enough
                self._pool.release(lease, ids)
        finally:
            self._lock.release()
