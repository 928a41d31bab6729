"""Tools -> a grammar of the calls that a model may write, in llguidance's Lark dialect.

Enters: normalized tools (`messages.normalize_tools`). Leaves: text for whatever follows
grammars; what `ToolCallParser` reads is what such a grammar lets through. Knows no tokenizer.

Values are JSON (`true`, not `True`), which the parser reads as well. A tool whose arguments
cannot be written as `name=value` one by one is called in JSON form.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal
from urllib.parse import unquote

from lfm2_deploy.answers.marks import CALL_END, CALL_START, THINK_END, THINK_START
from lfm2_deploy.errors import GrammarError
from lfm2_deploy.grammar_bounds import MOST_CHARACTERS

CallForm = Literal["pythonic", "json"]
Thinking = Literal["no", "may", "inside"]

# As models write JSON, and no room for endless white space.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_DEFINITIONS = ("$defs", "definitions")
# Keys of a schema that say no more than which arguments there are.
_PLAIN_KEYS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "title",
    "description",
    "$schema",
    *_DEFINITIONS,
}
_LOCAL = re.compile(r"#/(\$defs|definitions)/([^/]+)")


def build_tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    *,
    special_marks: Collection[str],
    form: CallForm = "pythonic",
    required: bool = True,
    most_calls: int | None = None,
    thinking: Thinking = "no",
    otherwise: Mapping[str, Any] | None = None,
) -> str:
    """The grammar of an answer that calls tools.

    Args:
        tools: those that may be called, as bare functions.
        special_marks: which of <|tool_call_start|>, <|tool_call_end|>, <think> and </think> are
            special tokens of the tokenizer; the others are plain text.
        form: how calls are written.
        required: the answer is calls and nothing else. Otherwise text may stand before and
            after calls, or alone.
        most_calls: in one list; None for any number.
        thinking: "may" where the answer may begin with <think>...</think>, "inside" where the
            prompt ended with <think>.
        otherwise: a schema of JSON that may be the answer in place of required calls.

    Returns:
        Text that begins with `start:`.

    Raises:
        GrammarError: there is no tool, no call may be made, or the tools are too large.
    """
    if not tools or (most_calls is not None and most_calls < 1):
        raise GrammarError("a call is wanted and none is possible: give at least one tool")
    calls, rules = _write_list(tools, form, most_calls)
    start, end = (_mark(mark, special_marks) for mark in (CALL_START, CALL_END))
    think, think_rules = _write_thinking(thinking, special_marks)
    if required:
        body = f"{start} {calls} {end}"
        if otherwise is not None:
            body = f"({body} | otherwise)"
            rules.append(f"otherwise: {_write_schema(otherwise)}")
    elif CALL_START in special_marks:
        body = f"TEXT ({start} {calls} {end} TEXT)*"
    else:
        body = f"(head {calls} {end})* TEXT"
        rules.append(f"head[lazy]: {_write_up_to(CALL_START)}")
    text = "TEXT: /(.|\\n)*/"
    return "\n".join([f"start: {think}{body}", *rules, *think_rules, text, ""])


def _write_list(
    tools: Sequence[Mapping[str, Any]], form: CallForm, most_calls: int | None
) -> tuple[str, list[str]]:
    """A list of calls, and the rules of each tool's."""
    names = [f"call{index}" for index in range(len(tools))]
    own = (
        _write_call(name, tool["name"], tool.get("parameters") or {}, form)
        for name, tool in zip(names, tools, strict=True)
    )
    rules = [f"call: {' | '.join(names)}", *_bound(chain.from_iterable(own))]
    further = '(", " call)*'
    if most_calls is not None:  # llguidance refuses {0,0}
        further = f'(", " call){{0,{most_calls - 1}}}' if most_calls > 1 else ""
    return f'"[" call {further} "]"', rules


def _bound(rules: Iterable[str]) -> Iterator[str]:
    """The rules, as long as they are not too large; they are written one by one.

    Each argument's schema brings the definitions that it refers to, so that a small request could
    have gigabytes written.
    """
    size = 0
    for rule in rules:
        size += len(rule)
        if size > MOST_CHARACTERS:
            raise GrammarError(
                "the tools' schemas, each argument with the definitions that it refers to, have "
                f"more than {MOST_CHARACTERS:,} characters: give fewer tools, or simpler ones"
            )
        yield rule


def _mark(mark: str, special_marks: Collection[str]) -> str:
    return mark if mark in special_marks else _quote(mark)


def _quote(text: str) -> str:
    """A string of the grammar: JSON's escapes are Lark's."""
    return json.dumps(text, ensure_ascii=False)


def _write_up_to(mark: str) -> str:
    escaped = re.escape(mark).replace("/", "\\/")
    return f"/(.|\\n)*{escaped}/"


def _write_thinking(
    thinking: Thinking, special_marks: Collection[str]
) -> tuple[str, Sequence[str]]:
    """What stands before the answer, and its rules."""
    if thinking == "no":
        return "", []
    if THINK_END in special_marks:
        think = f"TEXT {THINK_END} SPACE"
        rules = []
    else:
        think = "thoughts SPACE"
        rules = [f"thoughts[lazy]: {_write_up_to(THINK_END)}"]
    rules.append("SPACE: /[ \\n]{0,4}/")
    if thinking == "inside":
        return f"{think} ", rules
    return f"({_mark(THINK_START, special_marks)} {think})? ", rules


def _is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether arguments can be written one by one, each by its own schema."""
    properties = schema.get("properties", {})
    return (
        set(schema) <= _PLAIN_KEYS
        and set(schema.get("required", ())) <= set(properties)
        and all(_ARGUMENT_NAME.fullmatch(name) for name in properties)
        and all(_LOCAL.match(reference) for reference in _list_references(schema))
        # An object of any keys has none that could be named here.
        and bool(properties or schema.get("additionalProperties") is not True)
    )


def _list_references(value: Any) -> Iterator[str]:
    """Where a schema, and what is in it, refers to."""
    todo = deque([value])
    while todo:
        node = todo.popleft()
        if isinstance(node, Mapping):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            todo.extend(node.values())
        elif isinstance(node, list | tuple):
            todo.extend(node)


def _choose_definitions(value: Any, schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those definitions of a schema that a part of it refers to, and those that they refer to."""
    chosen: dict[str, dict[str, Any]] = {}
    todo = deque(_list_references(value))
    while todo:
        found = _LOCAL.match(todo.popleft())
        if found is None:
            continue
        # A JSON pointer, in an address.
        key, name = found[1], unquote(found[2]).replace("~1", "/").replace("~0", "~")
        known = schema.get(key)
        if isinstance(known, Mapping) and name in known and name not in chosen.get(key, {}):
            chosen.setdefault(key, {})[name] = known[name]
            todo.extend(_list_references(known[name]))
    return chosen


def _write_call(rule: str, name: str, schema: Mapping[str, Any], form: CallForm) -> Iterator[str]:
    """The rules of one tool's call."""
    if form == "pythonic" and _is_plain(schema):
        yield from _write_python_call(rule, name, schema)
    else:
        yield _write_json_call(rule, name, schema)


def _write_json_call(rule: str, name: str, schema: Mapping[str, Any]) -> str:
    # References are resolved from the root, which the arguments' schema is not here.
    inner = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
    whole = {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": inner or {"type": "object"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **{key: schema[key] for key in _DEFINITIONS if key in schema},
    }
    return f"{rule}: {_write_schema(whole)}"


def _write_schema(schema: Any) -> str:
    if not isinstance(schema, Mapping):  # `true` allows anything
        schema = {}
    return f"%json {json.dumps({**schema, 'x-guidance': _SPACING}, ensure_ascii=False)}"


def _write_python_call(rule: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """Rules of one call: arguments in the schema's order, those that may be absent too.

    `_first` rules stand where nothing was written yet, `_next` ones after a first argument.
    """
    properties = schema.get("properties", {})
    required = set(schema.get("required", ()))
    count = len(properties)
    yield f"{rule}: {_quote(name + '(')} {rule}_first0 {_quote(')')}"
    for index, (argument, value) in enumerate(properties.items()):
        written = f"{_quote(argument + '=')} {rule}_value{index} {rule}_next{index + 1}"
        first, following = written, f'", " {written}'
        if argument not in required:
            first += f" | {rule}_first{index + 1}"
            following += f" | {rule}_next{index + 1}"
        own = value
        if isinstance(value, Mapping):
            own = {**_choose_definitions(value, schema), **value}
        yield f"{rule}_first{index}: {first}"
        yield f"{rule}_value{index}: {_write_schema(own)}"
        if index:
            yield f"{rule}_next{index}: {following}"
    yield f'{rule}_first{count}: ""'
    if count:
        yield f'{rule}_next{count}: ""'
