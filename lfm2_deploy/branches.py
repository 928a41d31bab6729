"""Rows of one model that remember what they hold, so that a prompt computes only what is new.

Enters: token ids of a prompt. Leaves: a branch (one row of one session) that holds as much of
them as is known. A conversation that goes on is appended to; one that is edited or regenerated
goes back to a mark (conv states are put back, keys and values cut); a prompt that begins as one
in use does gets a copy of its states. Knows contracts, and nothing of text, threads or backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lfm2_deploy.contracts import (
    FloatArray,
    JoinableSession,
    Mark,
    NamedStates,
    Runtime,
    Session,
    Snapshot,
)
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.prefix_store import PrefixStore
from lfm2_deploy.tokens import Start

# A long answer gets a mark every so many tokens, for prompts that repeat part of it.
_TOKENS_BETWEEN_MARKS = 256
# Each holds conv states: 80 kB for LFM2-350M, 0.5 MB for LFM2-24B-A2B.
_MOST_MARKS = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """A length that can be gone back to; with logits, generation can start from there."""

    length: int
    mark: Mark
    logits: FloatArray | None


class Branch:
    """One row of one session, and which tokens it holds. A `contracts.Session` itself.

    One that is `leased` belongs to a running generation: others may copy from it, no more.
    """

    def __init__(self, session: Session, can_rewind: bool) -> None:
        self.session, self._can_rewind = session, can_rewind
        self.ids: list[int] = []
        self.places: list[_Place] = []
        self._pending: list[int] = []
        self._in_prompt = False
        self.leased = False

    @property
    def batch_size(self) -> int:
        return 1

    @property
    def capacity(self) -> int:
        return self.session.capacity

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.session.lengths

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        logits = self.session.prefill(rows)
        self.ids += rows[0]
        if self._in_prompt and self.places:
            # The pieces of a prompt before its last: nobody starts there.
            last = self.places[-1]
            self.places[-1] = _Place(last.length, last.mark, None)
        self._in_prompt = True
        self._add_place(logits[0].copy())
        return logits

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        logits = self.session.decode(tokens)
        self._grow([token for token in tokens if token is not None])
        return logits

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        logits = self.session.score(rows)
        self._grow(rows[0])
        return logits

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        logits = self.session.propose(rows)
        self._pending = list(rows[0])
        return logits

    def accept(self, counts: Sequence[int]) -> None:
        self.session.accept(counts)
        kept, self._pending = self._pending[: counts[0]], []
        self._grow(kept)

    def reset(self) -> None:
        self.session.reset()
        self.ids, self.places, self._pending, self._in_prompt = [], [], [], False

    def mark(self) -> Mark:
        return self.session.mark()

    def rewind(self, mark: Mark) -> None:
        self.session.rewind(mark)
        self.ids = self.ids[: mark.lengths[0]]
        self.places = [place for place in self.places if place.length <= mark.lengths[0]]
        self._in_prompt = False

    def snapshot(self, mark: Mark | None = None) -> Snapshot:
        return self.session.snapshot(mark)

    def restore(self, snapshot: Snapshot) -> None:
        raise NotImplementedError("a branch takes over what it holds: see `take_over`")

    def take_over(
        self, ids: Sequence[int], snapshot: Snapshot, logits: FloatArray | None = None
    ) -> None:
        """Hold what was stored of a prompt, or of another branch."""
        self.reset()
        self.session.restore(snapshot)
        self.ids = list(ids)
        self._add_place(logits)

    def advance(self, ids: Sequence[int], snapshot: Snapshot) -> None:
        """Hold what this row became in a batch of several; marks stay.

        Args:
            ids: all tokens the snapshot holds.
            snapshot: of `contracts.Rows.leave`.
        """
        cast(JoinableSession, self.session).advance(snapshot)
        self._grow(ids[len(self.ids) :])

    def begin(self) -> None:
        """A generation begins."""
        self._in_prompt = False
        if self._pending:  # its predecessor broke off between proposal and acceptance
            self.accept([0])

    def _grow(self, tokens: Sequence[int]) -> None:
        self.ids += tokens
        self._in_prompt = False
        if len(self.ids) - (self.places[-1].length if self.places else 0) >= _TOKENS_BETWEEN_MARKS:
            self._add_place(None)

    def _add_place(self, logits: FloatArray | None) -> None:
        if not self._can_rewind:
            return
        self.places.append(_Place(len(self.ids), self.session.mark(), logits))
        if len(self.places) > _MOST_MARKS:
            gaps = [b.length - a.length for a, b in zip(self.places, self.places[2:], strict=False)]
            del self.places[1 + gaps.index(min(gaps))]


@dataclass(frozen=True, slots=True)
class _Found:
    """How much of a prompt a branch can give, and the place to go back to, if any."""

    branch: Branch
    length: int
    place: _Place | None

    @property
    def dropped(self) -> int:
        """Tokens the branch would lose."""
        return len(self.branch.ids) - self.length


@dataclass(frozen=True, slots=True)
class Lease:
    """A branch for one generation.

    Args:
        branch: the session to use.
        start: what it holds of the prompt already.
        shared: tokens that the prompt has in common with some branch, which may be more than
            is held: a prompt that stops there for a mark lets the next one begin there.
    """

    branch: Branch
    start: Start
    shared: int


class BranchPool:
    """Branches of one model, for one thread."""

    def __init__(self, runtime: Runtime, most: int, store: PrefixStore | None = None) -> None:
        """Make an empty one.

        Args:
            runtime: the model.
            most: branches held at once, more than are ever leased together; the one used longest
                ago makes room. Each takes the memory of its keys and values.
            store: prefixes on disk, for prompts that none of them knows.

        Raises:
            GenerationError: most is below 1.
        """
        if most < 1:
            raise GenerationError(f"branches is {most}, expected at least 1")
        self.runtime = runtime
        self._most, self._store = most, store
        self._branches: list[Branch] = []  # the one used last is last

    def lease(self, ids: Sequence[int]) -> Lease:
        """A branch that holds what is known of a prompt; `release` must follow."""
        shared = max((count_common(one.ids, ids) for one in self._branches), default=0)
        branch, start = self._prepare(ids)
        branch.leased = True
        return Lease(branch, start, shared)

    def release(self, lease: Lease, ids: Sequence[int]) -> None:
        """Give a branch back, and keep the prompt on disk where there is a store."""
        lease.branch.leased = False
        self._keep_on_disk(lease.branch, ids, lease.start.held[0])

    def drop(self, lease: Lease) -> None:
        """Forget a branch whose states cannot be trusted."""
        self._branches.remove(lease.branch)

    def _prepare(self, ids: Sequence[int]) -> tuple[Branch, Start]:
        found = self._find(ids)
        length = found.length if found else 0
        stored = self._store.find(ids, longer_than=length) if self._store else None
        if stored is not None and self._pays(stored.length, len(ids)):
            branch = self._take_branch()
            branch.take_over(ids[: stored.length], stored.states, stored.logits)
            logits = stored.logits if stored.length == len(ids) else None
            return branch, _start(stored.length, logits)
        if found is None or length == 0:
            branch = self._take_beginning(ids) or self._take_branch()
            branch.reset()
            return branch, _start(0, None)
        branch = self._go_to(found)
        whole = length == len(ids) and found.place is not None
        return branch, _start(length, found.place.logits if whole and found.place else None)

    def _take_beginning(self, ids: Sequence[int]) -> Branch | None:
        """The branch of a conversation that goes on, though it is cheaper to read it anew."""
        for branch in self._free():
            if branch.ids and branch.ids == list(ids[: len(branch.ids)]):
                self._branches.remove(branch)
                self._branches.append(branch)
                return branch
        return None

    def _find(self, ids: Sequence[int]) -> _Found | None:
        for branch in self._free():
            branch.begin()
        found = [self._look(branch, ids) for branch in self._branches]
        # Of equals, one that need not be copied.
        return max(found, key=lambda one: (one.length, not one.branch.leased), default=None)

    def _free(self) -> list[Branch]:
        return [branch for branch in self._branches if not branch.leased]

    def _look(self, branch: Branch, ids: Sequence[int]) -> _Found:
        common = count_common(branch.ids, ids)
        if common == len(branch.ids) and common < len(ids) and not branch.leased:
            return _Found(branch, common if self._pays(common, len(ids)) else 0, None)
        for place in reversed(branch.places):
            if place.length < min(common + 1, len(ids)) and self._pays(place.length, len(ids)):
                return _Found(branch, place.length, place)
            if place.length == len(ids) == common and place.logits is not None:
                return _Found(branch, place.length, place)
        return _Found(branch, 0, None)

    def _pays(self, held: int, total: int) -> bool:
        """Whether going on from `held` tokens is cheaper than reading all of them anew."""
        able = self.runtime.info.capabilities
        return able.appends_many or (total - held) * able.tokens_per_step <= total

    def _go_to(self, found: _Found) -> Branch:
        """The branch at the place found; a new one where the old would lose more than it gives."""
        branch, place = found.branch, found.place
        if place is not None and (found.dropped or branch.leased):
            if self._should_fork(found):
                states, ids = branch.snapshot(place.mark), branch.ids[: found.length]
                branch = self._take_branch()
                branch.take_over(ids, states, place.logits)
            else:
                branch.rewind(place.mark)
        self._branches.remove(branch)
        self._branches.append(branch)
        return branch

    def _should_fork(self, found: _Found) -> bool:
        if found.branch.leased:
            return True
        return found.dropped > found.length and len(self._branches) < self._most

    def _take_branch(self) -> Branch:
        """A new branch while there may be more; then the one used longest ago."""
        if len(self._branches) < self._most:
            can_rewind = self.runtime.info.capabilities.rewinds
            self._branches.append(Branch(self.runtime.open(1), can_rewind))
        else:
            oldest = self._free()[0]
            self._branches.remove(oldest)
            self._branches.append(oldest)
        return self._branches[-1]

    def _keep_on_disk(self, branch: Branch, ids: Sequence[int], known: int) -> None:
        if self._store is None or len(ids) - known < self._store.min_tokens:
            return
        for place in reversed(branch.places):
            if place.length == len(ids) and place.logits is not None:
                states = branch.snapshot(place.mark)
                if isinstance(states, NamedStates):
                    self._store.save(ids, states, place.logits)
                return


def _start(held: int, logits: FloatArray | None) -> Start:
    return Start((held,), None if logits is None else logits[None])


def count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    differs = np.asarray(a[:length], np.int64) != np.asarray(b[:length], np.int64)
    return int(differs.argmax()) if differs.any() else length
