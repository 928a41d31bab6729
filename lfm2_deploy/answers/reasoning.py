"""Splits what a model thinks, <think>...</think>, from what it answers.

Enters: pieces of text, however cut. Leaves: the same text, each piece told apart; without the
marks, and without white space around the reasoning and before the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lfm2_deploy.answers.marks import THINK_END, THINK_START, MarkScanner


class ReasoningSplitter:
    """Splits one answer.

    Reasoning stands at the beginning or nowhere: a later <think> is part of the answer, which
    may be about such marks. Without an end, all of it is reasoning.
    """

    def __init__(
        self, *, starts_inside: bool = False, ends: Sequence[str] = (), hidden: Sequence[str] = ()
    ) -> None:
        """Begin an answer.

        Args:
            starts_inside: the prompt ended with <think> already.
            ends: further marks that end reasoning, and belong to the answer: a model that calls
                a tool has done with thinking, even if it forgot to say so.
            hidden: marks that are taken out of reasoning, and stay in the answer.
        """
        self._is_inside = starts_inside
        # Until the first character that is no white space, <think> may come.
        self._may_begin = True
        self._is_trimming = starts_inside
        self._space: list[str] = []
        self._hidden = frozenset(hidden)
        self._scanner = MarkScanner((THINK_START, THINK_END, *ends, *hidden))

    def push(self, text: str) -> list[tuple[bool, str]]:
        """Take more text in.

        Args:
            text: the next piece.

        Returns:
            Pieces to show, each with whether it is reasoning.
        """
        pieces: list[tuple[bool, str]] = []
        for before, mark in self._scanner.push(text):
            pieces += self._show(before)
            if mark is not None:
                pieces += self._turn(mark)
        return pieces

    def flush(self) -> list[tuple[bool, str]]:
        """End the answer; return what was held back."""
        pieces = [*self._show(self._scanner.flush())]
        if not self._is_inside and self._may_begin and self._space:
            pieces.append((False, "".join(self._space)))
        return pieces

    def _turn(self, mark: str) -> Iterator[tuple[bool, str]]:
        """What a mark lets out: nothing where it is one of reasoning's."""
        if self._may_begin and mark == THINK_START:
            self._is_inside = self._is_trimming = True
            self._may_begin = False
            self._space.clear()
        elif self._is_inside and mark in self._hidden:
            return
        elif self._is_inside and mark != THINK_START:
            self._is_inside = False
            self._may_begin = False
            self._is_trimming = mark == THINK_END
            self._space.clear()
            if mark != THINK_END:
                yield False, mark
        else:
            yield from self._show(mark)

    def _show(self, text: str) -> Iterator[tuple[bool, str]]:
        if self._is_trimming:
            text = text.lstrip()
        if not text:
            return
        # White space before a mark is dropped: what follows decides.
        is_open = self._is_inside or (self._may_begin and text.isspace())
        body = text.rstrip() if is_open else text
        if body:
            yield self._is_inside, "".join((*self._space, body))
            self._space.clear()
            self._may_begin = self._is_trimming = False
        if len(body) < len(text):
            self._space.append(text[len(body) :])
