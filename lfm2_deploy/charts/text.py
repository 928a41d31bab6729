"""Text that may be hostile -> text that can be shown anywhere, with nothing hidden.

What a model writes may hold control characters, direction marks that turn a line around,
and halves of surrogate pairs, which UTF-8 cannot hold. All become visible. Markup is for the
templates to escape, which they do by themselves.
"""

from __future__ import annotations

import unicodedata

# Control, format (direction marks, joiners), surrogate, private, unassigned; line ends.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS = frozenset({"Mn", "Me"})
# Stacked higher, marks are drawn over the lines above.
_MOST_MARKS = 3
_NAMED = {"\n": "⏎", "\t": "⇥"}


def make_visible(text: str, keep: str = "") -> str:
    """The text with what cannot be seen or stored written out, such as ⏎ or ⟨U+202E⟩.

    Args:
        text: any, lone surrogates too.
        keep: characters that stay as they are.
    """
    parts: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        hidden = category in _HIDDEN or marks > _MOST_MARKS
        parts.append(_write_out(character) if hidden and character not in keep else character)
    # A mark that begins a text would be drawn on what stands before it.
    joins = bool(text) and unicodedata.category(text[0]) in _MARKS
    return ("◌" if joins else "") + "".join(parts)


def show_token(text: str) -> str:
    """A token with its blanks visible: " the" -> "␣the"; those between words stay."""
    visible = make_visible(text)
    inner = visible.strip()
    before = len(visible) - len(visible.lstrip())
    after = len(visible) - before - len(inner)
    odd = "".join(c if c == " " or not c.isspace() else _write_out(c) for c in inner)
    return _show_blanks(visible[:before]) + odd + _show_blanks(visible[len(visible) - after :])


def _show_blanks(text: str) -> str:
    return "".join("␣" if c == " " else _write_out(c) for c in text)


def _write_out(character: str) -> str:
    return _NAMED.get(character, f"⟨U+{ord(character):04X}⟩")
