"""A model's text -> typed parts: text, reasoning, calls of tools.

Enters: the text of one answer, in pieces, however cut, with the tokens of `markers` kept in it.
Leaves: parts as they come, and in the end the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lfm2_deploy.answers.events import Part, ReasoningDelta, TextDelta, ToolCall
from lfm2_deploy.answers.marks import CALL_END, CALL_START, THINK_END, THINK_START
from lfm2_deploy.answers.reasoning import ReasoningSplitter
from lfm2_deploy.answers.tool_calls import ToolCallParser, make_call_id
from lfm2_deploy.tokenizer import Tokenizer


def markers(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of special tokens that an answer's text must keep for `AnswerParser`.

    Args:
        tokenizer: the model's. Where such a mark is no special token, its text is kept anyway.
    """
    ids = (tokenizer.token_id(mark) for mark in (CALL_START, CALL_END, THINK_START, THINK_END))
    return tokenizer.special_ids.intersection(ids)


class AnswerParser:
    """Parses one answer."""

    def __init__(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        starts_in_reasoning: bool = False,
        choice: int = 0,
        make_id: Callable[[], str] = make_call_id,
    ) -> None:
        """Begin an answer.

        Args:
            tools: what the model may call, as OpenAI's tool objects or bare functions. None
                where it may call nothing: then calls are plain text, without their marks.
            starts_in_reasoning: the prompt ended with <think> already.
            choice: see `TextDelta`.
            make_id: gives each call its id.
        """
        self._choice = choice
        ends, hidden = [CALL_START], [CALL_END]
        if tools is None:
            ends, hidden = [], [CALL_START, CALL_END]
        self._reasoning = ReasoningSplitter(
            starts_inside=starts_in_reasoning, ends=ends, hidden=hidden
        )
        self._calls = ToolCallParser(tools, choice=choice, make_id=make_id)
        self._texts: list[str] = []
        self._thoughts: list[str] = []

    @property
    def text(self) -> str:
        """The answer's text so far; all of it after `flush`."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """What the model thought."""
        return "".join(self._thoughts)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What it called."""
        return self._calls.calls

    @property
    def broken_calls(self) -> frozenset[int]:
        """Indices of calls whose end is missing; see `ToolCallParser.broken`."""
        return self._calls.broken

    def push(self, text: str) -> list[Part]:
        """Take more text in; return what it lets out, perhaps nothing."""
        return self._keep(self._route(self._reasoning.push(text)))

    def flush(self, *, cut: bool = False) -> list[Part]:
        """End the answer; return what was held back.

        Args:
            cut: see `ToolCallParser.flush`.
        """
        return self._keep([*self._route(self._reasoning.flush()), *self._calls.flush(cut=cut)])

    def _route(self, pieces: Sequence[tuple[bool, str]]) -> list[Part]:
        parts: list[Part] = []
        for is_reasoning, piece in pieces:
            if is_reasoning:
                parts.append(ReasoningDelta(piece, choice=self._choice))
            else:
                parts += self._calls.push(piece)
        return parts

    def _keep(self, parts: list[Part]) -> list[Part]:
        for part in parts:
            if isinstance(part, TextDelta):
                self._texts.append(part.text)
            elif isinstance(part, ReasoningDelta):
                self._thoughts.append(part.text)
        return parts
