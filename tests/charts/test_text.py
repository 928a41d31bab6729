"""Numbers and tokens as people read them."""

from __future__ import annotations

import math

import pytest

from lfm2_deploy.charts.numbers import format_number, format_share
from lfm2_deploy.charts.text import make_visible, show_token


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a⏎b⇥c"),
        ("\x00\x1b[31m", "⟨U+0000⟩⟨U+001B⟩[31m"),
        ("\u202eevil\u2066", "⟨U+202E⟩evil⟨U+2066⟩"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
        ("line\u2028end", "line⟨U+2028⟩end"),
        ("שלום", "שלום"),
        ("e\u0301", "e\u0301"),
        ("\u0301", "◌\u0301"),
        ("z\u0301\u0302\u0303\u0304", "z\u0301\u0302\u0303⟨U+0304⟩"),
        ("", ""),
    ],
)
def test_hidden_characters_become_visible(text: str, shown: str) -> None:
    assert make_visible(text) == shown
    make_visible(text).encode("utf-8")


def test_characters_to_keep_are_kept() -> None:
    assert make_visible("a\n\x07b", keep="\n") == "a\n⟨U+0007⟩b"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("a b ", "a b␣"),
        ("\n\n", "⏎⏎"),
        ("a\xa0b\xa0", "a⟨U+00A0⟩b⟨U+00A0⟩"),
    ],
)
def test_blanks_around_a_token_are_visible(token: str, shown: str) -> None:
    assert show_token(token) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.02134, "0.0213"),
        (12345.6, "12,300"),
        (4.271e-6, "4.27\N{MULTIPLICATION SIGN}10⁻⁶"),
        (9.999e-5, "0.000100"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
    ],
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert format_number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.98765, "98.8 %"),
        (0.99996, "99.996 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (0.0031, "0.31 %"),
        (0.00002, "<0.01 %"),
        (math.nan, "NaN"),
    ],
)
def test_shares_near_zero_and_one_are_told_from_them(share: float, shown: str) -> None:
    assert format_share(share) == shown
