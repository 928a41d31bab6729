"""Values of arguments, in Python's or JSON's spelling, as JSON.

Enters: a `Source` that stands at a value. Leaves: the value, through a `JsonWriter`.
Nothing is evaluated; depth and lengths are bounded, and time is linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lfm2_deploy.answers.json_writer import JsonWriter, quote_json
from lfm2_deploy.answers.literals import word_to_json
from lfm2_deploy.answers.source import MalformedError, Reads, Source
from lfm2_deploy.answers.strings import QUOTES, Place, read_string

MOST_DEPTH = 64
# Characters of a word without quotes, and of a quoted key or name.
MOST_NAME = 1024
_MOST_KEY = 65_536

_WORD = re.compile(r"[\w.$@+-]*")
_PREFIXES = {"r", "u", "b", "f", "rb", "br", "rf", "fr"}


class ValueReader:
    """Reads values from a source."""

    def __init__(self, source: Source, on_write: Callable[[JsonWriter], None]) -> None:
        """Prepare.

        Args:
            source: of the text.
            on_write: told each time that all text read so far has been written.
        """
        self._source = source
        self._on_write = on_write

    def read_value(
        self, writer: JsonWriter, place: Place, depth: int, kind: str | None = None
    ) -> Reads[None]:
        """Read a value and write it.

        Args:
            writer: takes it.
            place: where it stands.
            depth: how deep.
            kind: see `word_to_json`.

        Raises:
            MalformedError: it is none, or too deep.
        """
        if depth > MOST_DEPTH:
            raise MalformedError
        first = yield from self._source.peek()
        if first in QUOTES:
            yield from self._read_text(writer, place)
        elif first in ("[", "("):
            yield from self._read_items(writer, "]" if first == "[" else ")", depth)
        elif first == "{":
            yield from self._read_braces(writer, depth)
        else:
            word = yield from self.read_word()
            yield from self.read_rest_of_word(word, writer, place, kind)

    def read_rest_of_word(
        self, word: str, writer: JsonWriter, place: Place, kind: str | None
    ) -> Reads[None]:
        """Write the value that begins with a word: the word itself, or a string as in r"x"."""
        if (yield from self._source.peek()) in QUOTES and word.lower() in _PREFIXES:
            yield from self._read_text(writer, place, is_raw="r" in word.lower())
            return
        following = yield from self._source.skip_space()
        # A word at the end of an answer that was cut may be half of one.
        is_whole = following in tuple(",)]}") or (not following and self._source.closed)
        if not word or not is_whole:
            raise MalformedError
        writer.add(word_to_json(word, kind))
        self._on_write(writer)

    def read_word(self) -> Reads[str]:
        """Read a name or a number; perhaps ""."""
        return (yield from self._source.take(_WORD, MOST_NAME))

    def read_short_text(self, place: Place) -> Reads[str]:
        """Read a quoted string, whole; a long one is malformed."""
        pieces: list[str] = []
        size = 0

        def keep(text: str) -> None:
            nonlocal size
            size += len(text)
            if size > _MOST_KEY:
                raise MalformedError
            pieces.append(text)

        yield from read_string(self._source, place, keep)
        return "".join(pieces)

    def read_scalar(self) -> Reads[str]:
        """Read a key, or an element of a set, as JSON text."""
        if (yield from self._source.peek()) in QUOTES:
            return quote_json((yield from self.read_short_text(Place.KEY)))
        word = yield from self.read_word()
        if not word:
            raise MalformedError
        return word_to_json(word)

    def read_key(self) -> Reads[str]:
        """Read a key and the colon after it; return the key as JSON text."""
        key = yield from self.read_scalar()
        if (yield from self._source.skip_space()) != ":":
            raise MalformedError
        self._source.skip()
        yield from self._source.skip_space()
        return key if key[0] == '"' else quote_json(key)

    def read_members(self, writer: JsonWriter, depth: int) -> Reads[None]:
        """Read an object's members and its closing brace, into an object that is open."""
        while (yield from self._source.skip_space()) != "}":
            writer.set_key((yield from self.read_key()))
            yield from self.read_value(writer, Place.VALUE, depth)
            yield from self.read_comma("}")
        self._source.skip()

    def read_comma(self, closer: str) -> Reads[None]:
        """Read the comma after an element, if there is one before the closer."""
        following = yield from self._source.skip_space()
        if following == ",":
            self._source.skip()
        elif following != closer:
            raise MalformedError

    def _read_text(self, writer: JsonWriter, place: Place, is_raw: bool = False) -> Reads[None]:
        is_open = False

        def put(text: str) -> None:
            nonlocal is_open
            if not is_open:
                writer.open_string()
                is_open = True
            writer.add_text(text)
            self._on_write(writer)

        yield from read_string(self._source, place, put, is_raw=is_raw)
        put("")
        writer.close()

    def _read_items(self, writer: JsonWriter, closer: str, depth: int) -> Reads[None]:
        self._source.skip()
        writer.open_array()
        self._on_write(writer)
        while (yield from self._source.skip_space()) != closer:
            yield from self.read_value(writer, Place.ITEM, depth + 1)
            yield from self.read_comma(closer)
        self._source.skip()
        writer.close()
        self._on_write(writer)

    def _read_braces(self, writer: JsonWriter, depth: int) -> Reads[None]:
        """Read an object, or a set, for which JSON has an array."""
        self._source.skip()
        if (yield from self._source.skip_space()) == "}":
            writer.open_object()
            yield from self.read_members(writer, depth + 1)
        else:
            first = yield from self.read_scalar()
            if (yield from self._source.skip_space()) == ":":
                yield from self._read_object(writer, first, depth)
            else:
                yield from self._read_set(writer, first)
        writer.close()
        self._on_write(writer)

    def _read_object(self, writer: JsonWriter, key: str, depth: int) -> Reads[None]:
        self._source.skip()
        yield from self._source.skip_space()
        writer.open_object()
        writer.set_key(key if key[0] == '"' else quote_json(key))
        yield from self.read_value(writer, Place.VALUE, depth + 1)
        yield from self.read_comma("}")
        yield from self.read_members(writer, depth + 1)

    def _read_set(self, writer: JsonWriter, first: str) -> Reads[None]:
        writer.open_array()
        writer.add(first)
        yield from self.read_comma("}")
        while (yield from self._source.skip_space()) != "}":
            writer.add((yield from self.read_scalar()))
            yield from self.read_comma("}")
        self._source.skip()
