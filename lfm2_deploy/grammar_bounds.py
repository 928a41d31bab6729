"""What of a grammar would take too long, or too much memory, to compile.

Enters: the source of a grammar, from anyone. Leaves: nothing, or an error. llguidance's own limits
bound nearly all; here is what they do not: how long a source is, what several patterns together
match (the product of their automata), and what is a multiple of large numbers (a state for each
remainder). Each bound is where llguidance 1.9 takes about half a second.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from lfm2_deploy.errors import GrammarError

MOST_CHARACTERS = 65_536
# Of expressions, whose cost grows with the square: 65,536 characters take 20 s and 2 GB.
MOST_OF_A_REGEX = 4_096
MOST_OF_REGEXES = 16_384
# Five to be matched at once take 50 ms, seven 9 s, ten for ever.
_MOST_COMBINED = 4
# They must exclude each other, so all pairs are compared.
_MOST_KEYED = 64
_MOST_REMAINDERS = 10_000

# The end may be missing: so a text without one is passed over once, not for each of its characters.
_LARK_TEXTS = re.compile(r'(//)[^\n]*|"(?:\\.|[^"\\\n])*+(")?|/(?:\\.|[^/\\\n])++(/)?')
_LARK_JSON = re.compile(r"%json\s*(?=\{)")


def check_length(source: str, name: str, most: int = MOST_CHARACTERS) -> None:
    """Refuse what is long.

    Args:
        source: any text.
        name: what the message calls it.
        most: characters that are taken.

    Raises:
        GrammarError: it has more.
    """
    if len(source) > most:
        raise GrammarError(
            f"the {name} has {len(source):,} characters, and at most {most:,} are taken: "
            "make it smaller"
        )


def check_schema(source: str) -> None:
    """Refuse a JSON schema that is none, or would take too long.

    Args:
        source: its JSON text.

    Raises:
        GrammarError: it is not a JSON object, or beyond a bound.
    """
    check_length(source, "JSON schema")
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON ({error}): correct it") from error
    if not isinstance(schema, dict):
        raise GrammarError('the JSON schema is not an object, such as {"type": "object"}')
    nodes = list(_walk(schema))
    _check_patterns(nodes)
    _check_multiples(nodes)


def check_lark(source: str) -> None:
    """Refuse a Lark grammar that would take too long.

    Args:
        source: the grammar, perhaps with JSON schemas in it.

    Raises:
        GrammarError: it is beyond a bound.
    """
    check_length(source, "Lark grammar")
    rest = _check_inner_schemas(source)
    check_length(rest, "Lark grammar without its JSON schemas", MOST_OF_REGEXES)
    bare = _LARK_TEXTS.sub(_blank, rest)
    for sign in "&~":
        if sign in bare:
            raise GrammarError(
                f"the Lark grammar has {sign!r} between its terminals, which can take for ever: "
                "write it without; repetitions are {n,m}"
            )
    if "%llguidance" in bare:
        raise GrammarError("the Lark grammar has a line %llguidance, which is set here: remove it")


def _blank(text: re.Match[str]) -> str:
    """A space for a whole text or comment; one without an end is no text, and stays."""
    return " " if text.lastindex else text[0]


def _check_inner_schemas(source: str) -> str:
    """Check what follows each %json, and return the rest."""
    decoder = json.JSONDecoder()
    rest, place = "", 0
    for found in _LARK_JSON.finditer(source):
        if found.start() < place:  # within the schema before
            continue
        try:
            _, end = decoder.raw_decode(source, found.end())
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"what follows %json is not JSON ({error}): correct it") from error
        check_schema(source[found.end() : end])
        rest, place = rest + source[place : found.end()], end
    return rest + source[place:]


def _walk(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object of a schema, itself included; some are no schemas, which does not matter."""
    todo: list[Any] = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _check_patterns(nodes: list[Mapping[str, Any]]) -> None:
    patterns = [p for node in nodes if isinstance(p := node.get("pattern"), str)]
    for node in nodes:
        keyed = node.get("patternProperties")
        keyed = keyed if isinstance(keyed, dict) else {}
        if len(keyed) > _MOST_KEYED:
            raise GrammarError(
                f"the JSON schema has {len(keyed)} patternProperties, and at most {_MOST_KEYED} "
                "are taken: make them fewer"
            )
        patterns += keyed
    for pattern in patterns:
        check_length(pattern, "JSON schema's pattern", MOST_OF_A_REGEX)
    check_length("".join(patterns), "JSON schema's patterns together", MOST_OF_REGEXES)
    if len(patterns) > _MOST_COMBINED and any(map(_combines, nodes)):
        raise GrammarError(
            f"the JSON schema has {len(patterns)} patterns, and combines schemas (allOf, or a "
            f"pattern beside $ref, anyOf or oneOf): then at most {_MOST_COMBINED} are taken"
        )


def _combines(node: Mapping[str, Any]) -> bool:
    """Whether several schemas hold at once here, so that patterns may have to match together."""
    several = node.get("allOf")
    if isinstance(several, list) and (len(several) > 1 or "pattern" in node):
        return True
    return "pattern" in node and not node.keys().isdisjoint({"$ref", "anyOf", "oneOf"})


def _check_multiples(nodes: list[Mapping[str, Any]]) -> None:
    found = [node["multipleOf"] for node in nodes if "multipleOf" in node]
    # What is no number is llguidance's to refuse.
    steps = {Decimal(repr(step)) for step in found if isinstance(step, int | float) and step > 0}
    if not steps or not all(step.is_finite() for step in steps):
        return
    places = max(max(0, -_exponent(step)) for step in steps)
    if places > 20 or max(steps) > _MOST_REMAINDERS:
        remainders = math.inf
    else:
        remainders = math.lcm(*(int(step.scaleb(places)) for step in steps))
    if remainders > _MOST_REMAINDERS:
        raise GrammarError(
            "the JSON schema's multipleOf are too large, or too many together: their least common "
            f"multiple, in units of the last decimal place, is to be {_MOST_REMAINDERS:,} at most"
        )


def _exponent(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)  # finite numbers have one
    return exponent
