"""Calls of tools in a model's answer, taken out as they come.

Enters: the answer's text, in pieces, however cut; special marks such as <|tool_call_start|>
must be in it. Leaves: typed parts. What is no call comes back as text, complete.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lfm2_deploy.answers.call_block import CallBlock, Parameters
from lfm2_deploy.answers.events import (
    Part,
    TextDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallStarted,
)
from lfm2_deploy.answers.marks import CALL_END, CALL_START, MarkScanner


def make_call_id() -> str:
    """A fresh id, such as OpenAI's: "call_" and 24 hexadecimal digits."""
    return f"call_{secrets.token_hex(12)}"


class ToolCallParser:
    """Parses one answer.

    Calls stand between marks, in Python's form or as JSON. At an answer's very beginning they
    are known without marks, too, if they are of a tool that was given: some models write bare
    JSON when they are asked for JSON. Where tools are None, only the marks are taken out.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        choice: int = 0,
        make_id: Callable[[], str] = make_call_id,
    ) -> None:
        """Begin an answer.

        Args:
            tools: OpenAI's tool objects or bare functions.
            choice: see `TextDelta`.
            make_id: gives each call its id.
        """
        self._takes_calls = tools is not None
        self._sink = _Parts(choice, make_id)
        self._parameters = Parameters.by_tool(tools or ())
        self._scanner = MarkScanner((CALL_START, CALL_END))
        self._block = (
            CallBlock(self._sink, self._parameters, is_bare=True) if self._parameters else None
        )

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """What was called so far."""
        return tuple(
            ToolCall(call_id, name, "".join(pieces)) for call_id, name, pieces in self._sink.calls
        )

    @property
    def broken(self) -> frozenset[int]:
        """Indices of calls that ended before their end was written: arguments may be missing or
        cut. Their JSON is valid, but for that of a call where the answer was cut."""
        return frozenset(self._sink.broken)

    def push(self, text: str) -> list[Part]:
        """Take more text in; return what it lets out."""
        for piece, mark in self._scanner.push(text):
            self._take(piece)
            if mark is not None:
                self._end_block(closed=True)
            if mark == CALL_START and self._takes_calls:
                self._block = CallBlock(self._sink, self._parameters)
        return self._sink.take()

    def flush(self, *, cut: bool = False) -> list[Part]:
        """End the answer; return what was held back.

        Args:
            cut: it was ended in the middle. The JSON of a call under way stays unfinished then, so
                that nobody takes what there is for all of it.
        """
        self._take(self._scanner.flush())
        if cut and self._block is not None:
            self._block.cut()
        self._end_block(closed=False)
        return self._sink.take()

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._block is None:
            self._sink.add_text(text)
        else:
            self._block.push(text)

    def _end_block(self, *, closed: bool) -> None:
        if self._block is not None:
            # A mark closes only what a mark opened.
            self._block.end(closed=closed and not self._block.is_bare)
        self._block = None


class _Parts:
    """A `CallSink` that makes parts of what it is told."""

    def __init__(self, choice: int, make_id: Callable[[], str]) -> None:
        self._choice, self._make_id = choice, make_id
        self._new: list[Part] = []
        self.calls: list[tuple[str, str, list[str]]] = []
        self.broken: set[int] = set()
        self._is_after_call = False

    def start_call(self, name: str) -> None:
        index = len(self.calls)
        self.calls.append((self._make_id(), name, []))
        self._new.append(ToolCallStarted(index, self.calls[-1][0], name, self._choice))
        self._is_after_call = True

    def add_arguments(self, text: str) -> None:
        index = len(self.calls) - 1
        self.calls[index][2].append(text)
        self._new.append(ToolCallArguments(index, text, self._choice))

    def add_text(self, text: str) -> None:
        if self._is_after_call:  # white space between calls, or before what follows them
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._new.append(TextDelta(text, choice=self._choice))

    def break_call(self) -> None:
        self.broken.add(len(self.calls) - 1)

    def take(self) -> list[Part]:
        """What is new since the last call."""
        new, self._new = self._new, []
        return new
