"""What a model thinks is told from what it answers, however the text is cut."""

from __future__ import annotations

import pytest

from lfm2_deploy.answers.reasoning import ReasoningSplitter


def split(text: str, size: int | None = None, **options: object) -> tuple[str, str]:
    """Reasoning and answer of a text that arrives in pieces of a size."""
    splitter = ReasoningSplitter(**options)  # type: ignore[arg-type]
    pieces = []
    size = size or max(1, len(text))
    for start in range(0, len(text), size):
        pieces += splitter.push(text[start : start + size])
    pieces += splitter.flush()
    return (
        "".join(piece for is_reasoning, piece in pieces if is_reasoning),
        "".join(piece for is_reasoning, piece in pieces if not is_reasoning),
    )


@pytest.mark.parametrize("size", [None, 1, 2, 5])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>a b</think>c d", "a b", "c d"),
        ("<think>\n a\n\nb \n</think>\n\n c \n", "a\n\nb", "c \n"),
        (" \n<think>a</think>b", "a", "b"),
        ("no thoughts", "", "no thoughts"),
        (" \n spaces ", "", " \n spaces "),
        ("  ", "", "  "),
        ("", "", ""),
        ("<think></think>b", "", "b"),
        ("<think>\n\n</think>\n\nb", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</think>", "a", ""),
        ("<think>a</think> \n", "a", ""),
        ("<think>a</thin", "a</thin", ""),
        ("<thin", "", "<thin"),
        ("a <think>b</think> c", "", "a <think>b</think> c"),
        ("<think>a <think> b</think>c </think> d", "a <think> b", "c </think> d"),
        ("</think>a", "", "</think>a"),
        ("<think>1 < 2 </ think></think>b", "1 < 2 </ think>", "b"),
    ],
)
def test_reasoning_stands_at_the_beginning(
    text: str, reasoning: str, answer: str, size: int | None
) -> None:
    assert split(text, size) == (reasoning, answer)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("a</think>b", "a", "b"),
        ("\na\n</think>\n\nb", "a", "b"),
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\na</think>b", "a", "b"),
        ("a", "a", ""),
        ("</think>b", "", "b"),
        ("", "", ""),
    ],
)
def test_prompt_may_have_begun_the_reasoning(
    text: str, reasoning: str, answer: str, size: int | None
) -> None:
    assert split(text, size, starts_inside=True) == (reasoning, answer)


@pytest.mark.parametrize("size", [None, 1])
def test_other_marks_may_end_reasoning_and_stay(size: int | None) -> None:
    assert split("<think>a <call>b", size, ends=["<call>"]) == ("a", "<call>b")
    assert split("x <call>b", size, ends=["<call>"]) == ("", "x <call>b")


@pytest.mark.parametrize("size", [None, 1])
def test_hidden_marks_are_taken_out_of_reasoning_only(size: int | None) -> None:
    text = "<think>a <end>b</think>c <end>d"
    assert split(text, size, hidden=["<end>"]) == ("a b", "c <end>d")


def test_reasoning_is_shown_as_it_comes() -> None:
    splitter = ReasoningSplitter()
    assert splitter.push("<think>") == []
    assert splitter.push("one ") == [(True, "one")]
    assert splitter.push("two") == [(True, " two")]
    assert splitter.push("</think>\n") == []
    assert splitter.push("three ") == [(False, "three ")]
