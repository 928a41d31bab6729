"""What an answer must follow, as a plain value.

Enters: a JSON schema, a regular expression or a Lark grammar. Leaves: one frozen `Grammar`, of
bounded cost. Knows nothing of tokens, and nothing of how a grammar is followed: `guidance` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lfm2_deploy.errors import GrammarError
from lfm2_deploy.grammar_bounds import MOST_OF_A_REGEX, check_lark, check_length, check_schema

GrammarKind = Literal["json", "json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A set of texts, one of which an answer must be; make it with one of its constructors.

    Args:
        kind: what `source` is.
        source: the schema, expression or grammar; empty for "json".

    Raises:
        GrammarError: there is no such kind, or the source is not text, not JSON where it has to
            be, or would take too long to compile.
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
        if self.kind == "json" and self.source:
            raise GrammarError('a grammar of kind "json" has no source: use "json_schema"')
        if self.kind == "json_schema":
            check_schema(self.source)
        elif self.kind == "regex":
            check_length(self.source, self.name, MOST_OF_A_REGEX)
        elif self.kind == "lark":
            check_lark(self.source)

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
            GrammarError: it is not a JSON object, or would take too long to compile.
        """
        return cls("json_schema", schema if isinstance(schema, str) else _write_json(schema))

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
