"""Conversations of the Responses API, for `previous_response_id`: in memory, the newest only.

Enters and leaves: chat messages. Nothing is written to disk.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.server.errors import ApiError

_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """A response that can be gone on from.

    Args:
        response: as it was sent.
        messages: the conversation with its answer, without instructions.
        size_bytes: about what it takes.
        owner: whose it is; nobody else finds it.
    """

    response: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...]
    size_bytes: int
    owner: bytes


class ResponseStore:
    """The newest responses, up to a number and to a size."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def add(
        self, response: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], owner: bytes
    ) -> None:
        """Keep one; older ones may go, whose ever they are."""
        size = len(json.dumps([response, list(messages)]))
        self._kept[response["id"]] = Kept(response, tuple(messages), size, owner)
        self._size += size
        while self._kept and (len(self._kept) > self._most or self._size > _MOST_BYTES):
            self._size -= self._kept.popitem(last=False)[1].size_bytes

    def find(self, response_id: str, owner: bytes, param: str | None = None) -> Kept:
        """One that is kept; it counts as used.

        Raises:
            ApiError: 404, it is not there, or no longer, or another's.
        """
        kept = self._kept.get(response_id)
        if kept is None or kept.owner != owner:
            raise ApiError(
                404,
                f"there is no response {response_id[:80]!r}, or no longer: this server keeps the "
                f"last {self._most} in memory; send the whole conversation as 'input'",
                param=param,
                code="response_not_found",
            )
        self._kept.move_to_end(response_id)
        return kept

    def remove(self, response_id: str, owner: bytes) -> None:
        """Forget one.

        Raises:
            ApiError: as `find`.
        """
        self._size -= self.find(response_id, owner).size_bytes
        del self._kept[response_id]
