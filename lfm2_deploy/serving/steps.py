"""One token for every running row: together where the runtime can, else one after the other.

Enters: rows and their last tokens. Leaves: logits. A row alone is decoded in its own session;
as soon as there are two, rows move into a batch whose members come and go, and one that ends
moves back with its states, so that its conversation can go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lfm2_deploy.contracts import FloatArray, JoinsRows, Rows, Runtime
from lfm2_deploy.serving.row import Row


class Steps:
    """Decodes rows of one runtime."""

    def __init__(self, runtime: Runtime, most: int, together: bool) -> None:
        """Begin without rows.

        Args:
            runtime: the model.
            most: rows at once.
            together: join rows where the runtime can.
        """
        self._runtime, self._most = runtime, most
        self._joins = together and most > 1 and runtime.info.capabilities.joins_rows
        self._rows: Rows | None = None
        self._joined: list[Row] = []  # in order of their places

    def decode(self, rows: Sequence[Row]) -> list[tuple[Row, FloatArray | Exception]]:
        """Append each row's last token.

        Returns:
            Each row with its logits [V], or with why there are none.
        """
        if not self._joins or (len(rows) < 2 and not self._joined):
            return [(row, self._decode_alone(row)) for row in rows]
        failed = [pair for row in rows if row not in self._joined for pair in self._join(row)]
        together, members = self._decode_together(), tuple(self._joined)
        if isinstance(together, Exception):
            self._rows, self._joined = None, []
            return [*failed, *((row, together) for row in members)]
        return [*failed, *zip(members, together, strict=True)]

    def leave(self, row: Row, *, keep: bool) -> None:
        """A row ends; with `keep`, its branch holds all of it afterwards."""
        if row not in self._joined:
            return
        place = self._joined.index(row)
        states = self._batch().leave(place)
        last = self._joined.pop()
        if last is not row:
            self._joined[place] = last
        if keep:
            row.lease.branch.advance(row.held, states)

    def _decode_alone(self, row: Row) -> FloatArray | Exception:
        try:
            logits: FloatArray = row.lease.branch.decode([row.last])[0]
            return logits
        except Exception as error:  # whatever a runtime may raise
            return error

    def _join(self, row: Row) -> list[tuple[Row, Exception]]:
        try:
            self._batch().join(row.lease.branch.snapshot())
        except Exception as error:
            return [(row, error)]
        self._joined.append(row)
        return []

    def _decode_together(self) -> Sequence[FloatArray] | Exception:
        if not self._joined:
            return []
        try:
            logits = self._batch().decode([cast(int, row.last) for row in self._joined])
        except Exception as error:
            return error
        return list(logits)

    def _batch(self) -> Rows:
        if self._rows is None:
            self._rows = cast(JoinsRows, self._runtime).open_rows(self._most)
        return self._rows
