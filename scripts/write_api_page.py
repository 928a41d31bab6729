"""Write docs/python.md and docs/errors.md from the docstrings of what programs import.

    python scripts/write_api_page.py

Everything in `lfm2_deploy.__all__` is told, with its signature; errors and exit codes are those
of errors.py and of commands/failures.py. A test holds the pages against the code, so run this
after changing either.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import lfm2_deploy
from lfm2_deploy import errors
from lfm2_deploy.commands import failures

DOCS = Path(__file__).parents[1] / "docs"
MADE = "<!-- Written by scripts/write_api_page.py: change the docstring instead. -->"
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Source):(.*)$")
_ENTRY = re.compile(r"^(?: {4})([\w*.`, ]+): (.*)$")
_TITLES = {"Args": "Arguments", "Yields": "Gives"}
_BULLETS = ("Args", "Raises")
_WIDE = 88


def write_python() -> str:
    """The page of the Python API."""
    return "\n".join(_write_python()) + "\n"


def write_errors() -> str:
    """The page of errors and exit codes."""
    return "\n".join(_write_errors()) + "\n"


def _write_python() -> Iterator[str]:
    names = sorted(lfm2_deploy.__all__, key=lambda name: (name[0].isupper(), name.lower()))
    found = {name: getattr(lfm2_deploy, name) for name in names}
    functions = {name: value for name, value in found.items() if not isinstance(value, type)}
    classes = {name: value for name, value in found.items() if isinstance(value, type)}
    yield f"# Python\n\n{MADE}\n"
    yield from _tell(lfm2_deploy.__doc__ or "")
    yield "How these go together: [Embed in a program](embed.md).\n"
    yield f"## Functions\n\n{_list_links(functions)}\n"
    for name, function in functions.items():
        yield f"### {name}\n"
        yield from _write_callable(f"lfm2_deploy.{name}", function)
    yield f"## Classes\n\n{_list_links(classes)}\n"
    for name, kind in classes.items():
        yield from _write_class(name, kind)


def _list_links(found: dict[str, Any]) -> str:
    return ", ".join(f"[`{name}`](#{name.lower()})" for name in found)


def _write_class(name: str, kind: type) -> Iterator[str]:
    yield f"### {name}\n"
    if issubclass(kind, Exception):
        yield from _tell(inspect.getdoc(kind) or "")
        yield "All of them: [errors and exit codes](errors.md).\n"
        return
    shown = is_dataclass(kind) or kind.__init__ is not object.__init__
    made = (_write_signature(f"lfm2_deploy.{name}", kind),) if shown else ()
    yield from made
    yield from _tell(inspect.getdoc(kind) or "")
    if kind.__init__.__doc__ and not is_dataclass(kind):
        yield from _tell(inspect.getdoc(kind.__init__) or "")
    for method, value in vars(kind).items():
        if method.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"#### {name}.{method}\n"
            yield f"```python\n{method}: {_name_type(value)}\n```\n"
            yield from _tell(inspect.getdoc(value) or "")
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            yield f"#### {name}.{method}()\n"
            yield from _write_callable(f"{name}.{method}", getattr(kind, method))


def _write_callable(name: str, function: Any) -> Iterator[str]:
    yield _write_signature(name, function)
    yield from _tell(inspect.getdoc(function) or "")


def _name_type(value: property) -> str:
    return (
        str(inspect.signature(value.fget).return_annotation).replace("'", "") if value.fget else ""
    )


def _write_signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    parameters = [_write_parameter(parameter) for parameter in kept]
    if any(p.kind is p.KEYWORD_ONLY for p in kept) and not any(
        p.kind is p.VAR_POSITIONAL for p in kept
    ):
        first = next(i for i, p in enumerate(kept) if p.kind is p.KEYWORD_ONLY)
        parameters.insert(first, "*")
    returned = signature.return_annotation
    tail = (
        ""
        if returned in (signature.empty, None) or isinstance(function, type)
        else f" -> {returned}"
    )
    line = f"{name}({', '.join(parameters)}){tail}"
    if len(line) > _WIDE:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){tail}"
    return f"```python\n{line}\n```\n"


def _write_parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not parameter.empty:
        value = parameter.default
        # Factories and functions have addresses in their names, which change from run to run.
        plain = isinstance(value, str | int | float | bool | tuple | None)
        text += f" = {value!r}" if plain else " = ..."
    return text


def _tell(docstring: str) -> Iterator[str]:
    """A docstring of this project's form as Markdown."""
    section, lines = "", []
    for line in [*inspect.cleandoc(docstring).splitlines(), "End:"]:
        match = _SECTION.match(line)
        if match or line == "End:":
            yield from _write_section(section, lines)
            section, lines = (match[1], [match[2].strip()]) if match else ("", [])
        else:
            lines.append(line)


def _write_section(title: str, lines: list[str]) -> Iterator[str]:
    if not any(lines):
        return
    if not title:
        yield from _write_text(lines)
        return
    yield f"**{_TITLES.get(title, title)}**\n"
    if title in _BULLETS:
        yield from _write_bullets(lines)
    else:
        yield " ".join(" ".join(lines).split()) + "\n"


def _write_text(lines: list[str]) -> Iterator[str]:
    paragraphs = "\n".join(lines).strip("\n").split("\n\n")
    for is_code, group in groupby(paragraphs, lambda text: text.startswith("    ")):
        text = "\n\n".join(group)
        yield f"```python\n{inspect.cleandoc(text)}\n```\n" if is_code else f"{text}\n"


def _write_bullets(lines: list[str]) -> Iterator[str]:
    entries: list[str] = []
    for line in lines:
        match = _ENTRY.match(line)
        if match:
            names = ", ".join(f"`{name.strip()}`" for name in match[1].split(","))
            entries.append(f"- {names}: {match[2]}")
        elif line.strip() and entries:
            entries[-1] += f" {line.strip()}"
    yield "\n".join(entries) + "\n"


def _write_errors() -> Iterator[str]:
    introduction, tree, rest = _split_tree(inspect.getdoc(errors) or "")
    yield f"# Errors and exit codes\n\n{MADE}\n"
    yield f"{introduction}\n"
    yield "## Exit codes of commands\n\n| code | meaning |\n|---|---|"
    for code, meaning in re.findall(r"^ {4}(\d+) +(.+)$", failures.__doc__ or "", re.MULTILINE):
        yield f"| {code} | {meaning} |"
    yield "\nAn error is one line on stderr, `error: ...`; stdout holds results and nothing else."
    yield "`LFM2_DEPLOY_TRACEBACK=1` adds Python's traceback.\n"
    yield f"## Errors in Python\n\n```\n{tree}\n```\n\n{rest}\n"
    yield "| error | is a | when | exit code |\n|---|---|---|---|"
    for kind in _list_errors():
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        told = " ".join((inspect.getdoc(kind) or "").split())
        code = failures.USAGE if issubclass(kind, errors.UsageError) else failures.ERROR
        yield f"| `{kind.__name__}` | {bases} | {told} | {code} |"


def _split_tree(text: str) -> tuple[str, str, str]:
    """The module's docstring: before its tree, the tree, after it."""
    lines = text.splitlines()
    drawn = [i for i, line in enumerate(lines) if line.startswith("    ")]
    first, last = drawn[0], drawn[-1]
    before, after = lines[1:first], lines[last + 1 :]
    tree = inspect.cleandoc("\n".join(lines[first : last + 1]))
    return "\n".join(before).strip(), tree, "\n".join(after).strip()


def _list_errors() -> list[type]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, errors.Lfm2DeployError)]


def main() -> int:
    """Write both pages."""
    (DOCS / "python.md").write_text(write_python(), encoding="utf-8")
    (DOCS / "errors.md").write_text(write_errors(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
