"""What an answer must follow, as a plain value.

Enters: a JSON schema, a regular expression or a Lark grammar. Leaves: one frozen `Grammar`, of
bounded size. Knows nothing of tokens, and nothing of how a grammar is followed: `guidance` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lfm2_deploy.errors import GrammarError

GrammarKind = Literal["json", "json_schema", "regex", "lark"]

# Compiling takes up to the square of it: this much takes half a second at worst.
MOST_CHARACTERS = 65_536


@dataclass(frozen=True, slots=True)
class Grammar:
    """A set of texts, one of which an answer must be; make it with one of its constructors.

    Args:
        kind: what `source` is.
        source: the schema, expression or grammar; empty for "json".

    Raises:
        GrammarError: there is no such kind, or the source is not text, or too long.
    """

    kind: GrammarKind
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            choices = ", ".join(get_args(GrammarKind))
            raise GrammarError(f"grammar kind is {self.kind!r}, expected one of {choices}")
        if not isinstance(self.source, str):
            found = type(self.source).__name__
            raise GrammarError(f"the {self.name} is of type {found}, expected text")
        if len(self.source) > MOST_CHARACTERS:
            raise GrammarError(
                f"the {self.name} has {len(self.source):,} characters, and at most "
                f"{MOST_CHARACTERS:,} are taken: make it smaller"
            )
        if self.kind == "json" and self.source:
            raise GrammarError('a grammar of kind "json" has no source: use "json_schema"')

    @classmethod
    def json(cls) -> Grammar:
        """Any JSON object."""
        return cls("json")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """A JSON value that a schema describes; properties come in the schema's order.

        Args:
            schema: an object, or its JSON text. References lead to places inside it only.

        Raises:
            GrammarError: it is not a JSON object, or too long.
        """
        if not isinstance(schema, str):
            return cls("json_schema", _write_json(schema))
        grammar = cls("json_schema", schema)  # refuses what is long before it is read
        _check_object(schema)
        return grammar

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole.

        Args:
            pattern: in the syntax of Rust's `regex`: no look-around and no back-references.
        """
        return cls("regex", pattern)

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """A text that a context-free grammar gives.

        Args:
            source: in llguidance's dialect of Lark; its first rule is `start`.
        """
        return cls("lark", source)

    @property
    def name(self) -> str:
        """What messages call it."""
        names = {"json": "JSON grammar", "json_schema": "JSON schema", "lark": "Lark grammar"}
        return names.get(self.kind, "regular expression")


def _write_json(schema: Mapping[str, Any]) -> str:
    if not isinstance(schema, Mapping):
        raise GrammarError(
            f"the JSON schema is of type {type(schema).__name__}, expected a mapping or JSON text"
        )
    try:
        return json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(
            f"the JSON schema cannot be written as JSON ({error}): use plain values"
        ) from error


def _check_object(text: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON ({error}): correct it") from error
    if not isinstance(found, dict):
        raise GrammarError('the JSON schema is not an object, such as {"type": "object"}')
