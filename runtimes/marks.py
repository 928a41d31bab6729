"""Which marks of a session may still be gone back to.

Enters: marks as they are made, and lengths as rows are cut. A mark is void once its
session held other tokens before that place.
"""

from __future__ import annotations

from weakref import WeakSet

from lfm2_deploy.contracts import Mark
from lfm2_deploy.errors import GenerationError


class Marks:
    """The valid marks of one session; those nobody holds are forgotten."""

    def __init__(self) -> None:
        self._valid: WeakSet[Mark] = WeakSet()

    def add(self, mark: Mark) -> Mark:
        """Take note of a new one, and return it."""
        self._valid.add(mark)
        return mark

    def check(self, mark: Mark) -> None:
        """Refuse a mark that cannot be gone back to.

        Raises:
            GenerationError: it is of another session, or void.
        """
        if mark not in self._valid:
            raise GenerationError(
                "this mark is of another session, or of tokens that are no longer there: "
                "append them again"
            )

    def cut(self, lengths: tuple[int, ...]) -> None:
        """Rows were cut to these lengths: marks beyond any of them are void."""
        for mark in list(self._valid):
            if any(own > kept for own, kept in zip(mark.lengths, lengths, strict=True)):
                self._valid.discard(mark)

    def clear(self) -> None:
        """The session holds something else: every mark is void."""
        self._valid.clear()
