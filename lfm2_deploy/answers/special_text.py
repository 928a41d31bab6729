"""Chats -> token ids, such that no text within a message becomes a token that rules the chat.

Enters: messages, tools and options, whatever they hold. Leaves: ids, in which the template's
own <|im_start|> is the special token, and one that a user or a web page wrote is plain text.

While the template runs, the first character of such a text is replaced by a stand-in: one
private character for one character, so that templates may slice, strip or quote contents as
they like, and texts that only together make a token are caught as well. Rendered, the
stand-ins show which tokens are not the template's, and there the text is encoded in two pieces,
neither of which holds the whole token. (Joiners of zero width would stay in what the model
reads, and be copied into its answers.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from lfm2_deploy.answers.marks import CALL_END, CALL_START, THINK_END, THINK_START
from lfm2_deploy.chat import ChatTemplate, Message
from lfm2_deploy.errors import TemplateError
from lfm2_deploy.tokenizer import Tokenizer

# Tokens that a message of this role may hold as such: what the model itself wrote, and what
# Liquid's documentation has system messages say where a template does not.
_OWN_TOKENS = {
    "assistant": frozenset({CALL_START, CALL_END, THINK_START, THINK_END}),
    "system": frozenset({"<|tool_list_start|>", "<|tool_list_end|>"}),
}
_PRIVATE = range(0xE000, 0xF900)
_PRIVATE_TEXT = re.compile(r"[\ue000-\uf8ff]|\\u[ef][0-9a-f]{3}")
# Names of roles' own contents; what else a message holds is never the model's own text.
_CONTENT = ("content", "thinking", "reasoning", "reasoning_content")


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any] | str] | None = None,
    options: Mapping[str, Any] | None = None,
    check: Callable[[str], None] = lambda _: None,
) -> list[int]:
    """Token ids of a conversation.

    Args:
        tokenizer: the model's.
        template: the model's.
        messages: see `ChatTemplate.render`.
        tools: see `ChatTemplate.render`.
        options: further options of `ChatTemplate.render`.
        check: raises where the rendered text is not to be encoded.

    Returns:
        Where no text forges a token: the ids of the rendered text.

    Raises:
        TemplateError: the template does not take the messages.
        GenerationError: the text is not valid Unicode.
    """
    options = options or {}
    try:
        strings = list(_strings((messages, tools, options)))
        guard = _Guard(find_guarded(tokenizer))
        if not any(map(guard.threatens, strings)):
            text = template.render(messages, tools=tools, **options)
            check(text)
            # The template prints the start token; the tokenizer must not put a second one.
            return tokenizer.encode(text, add_special_tokens=False)
        stand_ins = _choose_stand_ins(guard.first_characters, [template.source, *strings])
        hidden = template.render(
            _hide_messages(messages, guard, stand_ins),
            tools=_hide(tools, partial(guard.hide, stand_ins=stand_ins)),
            **_hide(options, partial(guard.hide, stand_ins=stand_ins)),
        )
        check(hidden)
    except RecursionError as error:
        raise TemplateError("the messages are nested too deeply: send flatter values") from error
    return [
        token_id
        for piece in guard.cut(hidden, stand_ins)
        for token_id in tokenizer.encode(piece, add_special_tokens=False)
    ]


def find_guarded(tokenizer: Tokenizer) -> frozenset[str]:
    """Texts of the tokens that contents must not forge.

    These are the special ones, and others that are written like them: <|tool_call_start|> is an
    ordinary added token in some of LFM2's tokenizers. Added words, such as "python", are none.
    """
    special = tokenizer.special_ids
    return frozenset(
        text
        for text, token_id in tokenizer.added_tokens.items()
        if len(text) > 1
        and (token_id in special or (text.startswith("<|") and text.endswith("|>")))
    )


class _Guard:
    """Finds tokens' texts, and the beginnings of such."""

    def __init__(self, tokens: Collection[str]) -> None:
        self.first_characters = {token[0] for token in tokens}
        self._longest = max(map(len, tokens), default=1) - 1
        self._beginnings = {token[:length] for token in tokens for length in range(1, len(token))}
        listed = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
        # Without reading on, so that tokens that overlap are all found; no tokens match nothing.
        self._token = re.compile(f"(?=({listed}))" if tokens else "(?!)")

    def threatens(self, text: str) -> bool:
        """Whether a text holds a token, or ends with the beginning of one."""
        return self._token.search(text) is not None or bool([*self._open_places(text)])

    def hide(
        self, text: str, *, stand_ins: Mapping[str, str], own: Collection[str] = frozenset()
    ) -> str:
        """The text, with a stand-in for the first character of each token that is not `own`."""
        found = {match.start() for match in self._token.finditer(text) if match[1] not in own}
        characters = list(text)
        for place in found.union(self._open_places(text)):
            characters[place] = stand_ins[text[place]]
        return "".join(characters)

    def cut(self, hidden: str, stand_ins: Mapping[str, str]) -> list[str]:
        """The text meant, cut after the first character of each token that is forged."""
        for stand_in in stand_ins.values():  # a template may have printed JSON in ASCII
            hidden = hidden.replace(f"\\u{ord(stand_in):04x}", stand_in)
        given = set(stand_ins.values())
        places = {place for place, character in enumerate(hidden) if character in given}
        text = hidden.translate({ord(value): key for key, value in stand_ins.items()})
        cuts = [
            match.start() + 1 for match in self._token.finditer(text) if match.start() in places
        ]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    def _open_places(self, text: str) -> Iterator[int]:
        for place in range(max(0, len(text) - self._longest), len(text)):
            if text[place] in self.first_characters and text[place:] in self._beginnings:
                yield place


def _strings(value: Any) -> Iterator[str]:
    """Every string within a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _choose_stand_ins(characters: Collection[str], texts: Sequence[str]) -> dict[str, str]:
    """A private character for each of some, that stands nowhere in the texts."""
    used = {character for text in texts for character in _PRIVATE_TEXT.findall(text)}
    free = (code for code in _PRIVATE if not {chr(code), f"\\u{code:04x}"} & used)
    chosen = dict(zip(sorted(characters), map(chr, free), strict=False))
    if len(chosen) < len(characters):
        raise TemplateError("the messages hold every private character of Unicode: remove some")
    return chosen


def _hide(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {_hide(key, hide): _hide(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, hide) for item in value]
    return value


def _hide_messages(messages: Any, guard: _Guard, stand_ins: Mapping[str, str]) -> Any:
    if not isinstance(messages, list | tuple):
        return messages  # the template says what is wrong with it
    return [_hide_message(message, guard, stand_ins) for message in messages]


def _hide_message(message: Any, guard: _Guard, stand_ins: Mapping[str, str]) -> Any:
    if not isinstance(message, Mapping):
        return message
    role = message.get("role")
    own = _OWN_TOKENS.get(role, frozenset()) if isinstance(role, str) else frozenset()
    hidden = {}
    for key, value in message.items():
        allowed = own if key in _CONTENT else frozenset()
        hide = partial(guard.hide, stand_ins=stand_ins, own=allowed)
        hidden[_hide(key, hide)] = _hide(value, hide)
    return hidden
