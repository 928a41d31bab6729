"""One stretch of a model's text that holds calls of tools, in any of the forms they take.

Enters: its text, in pieces: `[f(a="v"), g()]`, or `[{"name": "f", "arguments": {...}}]`, or one
such object. Leaves: names and arguments, to a `CallSink`, as early as they are certain; and as
plain text, whatever is none of this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lfm2_deploy.answers.json_writer import JsonWriter, quote_json
from lfm2_deploy.answers.source import MalformedError, Reads, Source
from lfm2_deploy.answers.strings import QUOTES, Place, read_string
from lfm2_deploy.answers.values import MOST_NAME, ValueReader

# The longest context is 128K tokens, about half a million characters.
_MOST_CHARACTERS = 1_000_000

_NAME = re.compile(r"[\w.-]*")
_ARGUMENTS = ("arguments", "parameters")
_OTHER_KEYS = ("name", "function", "type", "id", *_ARGUMENTS)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a tool's schema says of its arguments.

    Args:
        names: in the schema's order.
        kinds: name -> JSON type, of those that allow just one.
    """

    names: tuple[str, ...]
    kinds: Mapping[str, str]

    @classmethod
    def by_tool(cls, tools: Sequence[Mapping[str, Any]]) -> dict[str, Parameters]:
        """Those of every tool.

        Args:
            tools: OpenAI's tool objects or bare functions; what is no schema says nothing.
        """
        found = {}
        for tool in tools:
            function = tool.get("function", tool)
            schema = function.get("parameters")
            listed = schema.get("properties") if isinstance(schema, Mapping) else None
            listed = listed if isinstance(listed, Mapping) else {}
            kinds = {
                name: value["type"]
                for name, value in listed.items()
                if isinstance(value, Mapping) and isinstance(value.get("type"), str)
            }
            found[str(function.get("name"))] = cls(tuple(listed), kinds)
        return found


class CallSink(Protocol):
    """Takes what a block is made of, in order."""

    def start_call(self, name: str) -> None:
        """A call begins."""

    def add_arguments(self, text: str) -> None:
        """JSON text of the last call's arguments."""

    def add_text(self, text: str) -> None:
        """Text that is part of no call."""

    def break_call(self) -> None:
        """The last call ended before its end was written."""


@dataclass(slots=True)
class _Draft:
    """A call in JSON form, as far as it was read."""

    name: str | None = None
    has_started: bool = False
    # What came before the name: kept here until it does.
    arguments: JsonWriter | None = None
    is_done: bool = False


class CallBlock:
    """Parses one block; `is_done` says that all that follows is text."""

    def __init__(
        self, sink: CallSink, tools: Mapping[str, Parameters], *, is_bare: bool = False
    ) -> None:
        """Begin a block.

        Args:
            sink: takes what is found.
            tools: name -> what is known of its arguments.
            is_bare: no mark said that calls come. Then only calls of known tools count, and
                the block ends with the last of them.
        """
        self.is_done = False
        self.is_bare = is_bare
        self._sink = sink
        self._tools = tools
        self._source = Source()
        self._size = 0
        # Of the last call; it is under way while `_is_writing`.
        self._writer: JsonWriter | None = None
        self._is_writing = False
        self._values = ValueReader(self._source, self._mark_written)
        self._run = self._read_bare() if is_bare else self._read_marked()

    def push(self, text: str) -> None:
        """Take more of the block in."""
        if self.is_done:
            self._sink.add_text(text)
            return
        room = _MOST_CHARACTERS - self._size
        self._size += len(text)
        self._source.feed(text[:room])
        self._resume()
        if len(text) > room:
            if not self.is_done:
                self._give_up()
            self._sink.add_text(text[room:])

    def end(self, *, closed: bool) -> None:
        """No more comes.

        Args:
            closed: the mark that ends calls said so; otherwise the answer ended.
        """
        self._source.end(closed=closed)
        if not self.is_done:
            self._resume()

    def cut(self) -> None:
        """The answer was cut here: what is written stays unfinished, and the rest is no text."""
        if self.is_done:
            return
        self.is_done = True
        self._give_arguments()
        if self._writer is not None and self._is_writing:
            self._sink.break_call()
        elif self.is_bare:
            self._sink.add_text(self._source.rest())

    def _resume(self) -> None:
        try:
            next(self._run)
            self._give_arguments()
        except StopIteration:
            self.is_done = True
            self._give_arguments()
            self._sink.add_text(self._source.rest())
        except MalformedError:
            self._give_up()

    def _give_up(self) -> None:
        """End the call under way, so that its JSON is valid; the rest is text."""
        self.is_done = True
        is_broken = self._writer is not None and self._is_writing
        if self._writer is not None and is_broken:
            self._writer.finish()
            if self._writer.is_empty:
                self._writer.add("{}")
        self._give_arguments()
        if is_broken:
            self._sink.break_call()
        self._sink.add_text(self._source.rest())

    def _give_arguments(self) -> None:
        text = self._writer.take() if self._writer is not None else ""
        if text:
            self._sink.add_arguments(text)

    def _mark_written(self, writer: JsonWriter) -> None:
        if writer is self._writer:
            self._source.use()

    def _start(self, name: str) -> JsonWriter:
        self._give_arguments()
        self._sink.start_call(name)
        self._writer, self._is_writing = JsonWriter(), True
        self._source.use()
        return self._writer

    def _end(self) -> None:
        self._is_writing = False
        self._source.use()

    def _read_marked(self) -> Reads[None]:
        """Read calls up to the end; brackets and commas between them may be missing."""
        while following := (yield from self._source.skip_space()):
            if following in "[],;":
                self._source.skip()
                if self._writer is not None:
                    self._source.use()
            elif following == "{":
                yield from self._read_json_call()
            else:
                yield from self._read_python_call()
        if self._writer is not None:
            self._source.use()

    def _read_bare(self) -> Reads[None]:
        """Read one call in JSON form, or a list of calls in either, to its closing bracket."""
        is_list = (yield from self._source.skip_space()) == "["
        if is_list:
            self._source.skip()
        while True:
            following = yield from self._source.skip_space()
            if following == "{":
                yield from self._read_json_call()
            elif is_list:
                yield from self._read_python_call()
            else:
                raise MalformedError
            if not is_list:
                return
            yield from self._values.read_comma("]")
            if (yield from self._source.skip_space()) == "]":
                self._source.skip()
                self._source.use()
                return

    def _read_python_call(self) -> Reads[None]:
        name = yield from self._source.take(_NAME, MOST_NAME)
        following = yield from self._source.skip_space()
        if not name or following != "(" or (self.is_bare and name not in self._tools):
            raise MalformedError
        self._source.skip()
        writer = self._start(name)
        writer.open_object()
        parameters = self._tools.get(name, Parameters((), {}))
        place = 0
        while (following := (yield from self._source.skip_space())) != ")":
            if not following and self._source.closed:  # a forgotten parenthesis
                break
            place += yield from self._read_argument(writer, parameters, place)
            if (yield from self._source.skip_space()):
                yield from self._values.read_comma(")")
        self._source.skip(len(following))
        writer.close()
        self._end()

    def _read_argument(self, writer: JsonWriter, parameters: Parameters, place: int) -> Reads[int]:
        """Read one argument; return how many places it takes among those without a name."""
        # One that no schema names has its number for a name: nothing is lost, and the program
        # that checks arguments refuses it.
        name = parameters.names[place] if place < len(parameters.names) else str(place)
        kind = parameters.kinds.get(name)
        following = yield from self._source.peek()
        # An object where the schema wants, say, a string holds all arguments: f({"a": "v"}).
        if following == "*" or (following == "{" and kind not in (None, "object")):
            yield from self._read_unpacked(writer)
            return 0
        if following in QUOTES or following in ("[", "{", "("):
            writer.set_key(quote_json(name))
            yield from self._values.read_value(writer, Place.POSITIONAL, 1, kind)
            return 1
        word = yield from self._values.read_word()
        if word and (yield from self._source.skip_space()) == "=":
            self._source.skip()
            yield from self._source.skip_space()
            writer.set_key(quote_json(word))
            yield from self._values.read_value(
                writer, Place.ARGUMENT, 1, parameters.kinds.get(word)
            )
            return 0
        writer.set_key(quote_json(name))
        yield from self._values.read_rest_of_word(word, writer, Place.POSITIONAL, kind)
        return 1

    def _read_unpacked(self, writer: JsonWriter) -> Reads[None]:
        """Read `**{...}`, or without asterisks: its members are arguments."""
        if (yield from self._source.peek()) == "*":
            if (yield from self._source.ahead(2)) != "**":
                raise MalformedError
            self._source.skip(2)
        if (yield from self._source.skip_space()) != "{":
            raise MalformedError
        self._source.skip()
        yield from self._values.read_members(writer, 1)

    def _read_json_call(self) -> Reads[None]:
        draft = _Draft()
        yield from self._read_json_members(draft)
        if draft.name is None or (self.is_bare and not draft.has_started):
            raise MalformedError
        if not draft.has_started:
            self._start_draft(draft)
        if not draft.is_done and self._writer is not None:
            self._writer.add("{}")
        self._end()

    def _read_json_members(self, draft: _Draft, is_inner: bool = False) -> Reads[None]:
        self._source.skip()
        while (yield from self._source.skip_space()) != "}":
            key = (yield from self._values.read_key())[1:-1]
            following = yield from self._source.peek()
            is_name = key == "name" or (key == "function" and following in QUOTES)
            if self.is_bare and key not in _OTHER_KEYS:
                raise MalformedError
            if is_name and draft.name is None:
                yield from self._read_json_name(draft)
            elif key in _ARGUMENTS and not draft.is_done:
                yield from self._read_json_arguments(draft)
                draft.is_done = True
            elif key == "function" and following == "{" and not is_inner:
                yield from self._read_json_members(draft, is_inner=True)
            else:
                yield from self._values.read_value(JsonWriter(), Place.VALUE, 1)
            yield from self._values.read_comma("}")
        self._source.skip()

    def _read_json_name(self, draft: _Draft) -> Reads[None]:
        if (yield from self._source.peek()) not in QUOTES:
            raise MalformedError
        name = yield from self._values.read_short_text(Place.VALUE)
        if not name or not _NAME.fullmatch(name) or (self.is_bare and name not in self._tools):
            raise MalformedError
        draft.name = name
        # Without marks a name may be that of anything: arguments must follow.
        if not self.is_bare or draft.is_done:
            self._start_draft(draft)

    def _start_draft(self, draft: _Draft) -> JsonWriter:
        assert draft.name is not None
        writer = self._start(draft.name)
        draft.has_started = True
        if draft.arguments is not None:
            writer.add(draft.arguments.take())
        return writer

    def _read_json_arguments(self, draft: _Draft) -> Reads[None]:
        following = yield from self._source.peek()
        if following not in ("{", *QUOTES, "n", "N"):
            raise MalformedError
        if draft.name is None:
            writer = draft.arguments = JsonWriter()
        elif draft.has_started and self._writer is not None:
            writer = self._writer
        else:
            writer = self._start_draft(draft)
        if following == "{":
            yield from self._read_object(self._values, self._source, writer)
        elif following in QUOTES:
            yield from self._read_quoted_arguments(writer)
        elif (yield from self._values.read_word()) in ("null", "None"):
            writer.add("{}")
        else:
            raise MalformedError

    def _read_quoted_arguments(self, writer: JsonWriter) -> Reads[None]:
        """Read arguments that are JSON text within a string, as in OpenAI's own messages."""
        pieces: list[str] = []
        yield from read_string(self._source, Place.VALUE, pieces.append)
        inner = Source()
        inner.feed("".join(pieces))
        inner.end(closed=True)
        if (yield from inner.skip_space()) != "{":
            raise MalformedError
        whole = JsonWriter()
        yield from self._read_object(ValueReader(inner, lambda _: None), inner, whole)
        if (yield from inner.skip_space()):
            raise MalformedError
        writer.add(whole.take())

    @staticmethod
    def _read_object(values: ValueReader, source: Source, writer: JsonWriter) -> Reads[None]:
        source.skip()
        writer.open_object()
        yield from values.read_members(writer, 1)
        writer.close()
