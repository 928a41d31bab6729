"""Write a page for each command into docs/commands/, and their list into mkdocs.yml.

    python scripts/write_command_pages.py

What commands take and say comes from the command line itself; here is only what `--help` leaves
to a page: variables, files and guides. A test holds the pages against the program, so run this
after changing a command or its help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from lfm2_deploy.cli import app
from lfm2_deploy.commands import failures
from lfm2_deploy.commands.failures import PROGRAM
from lfm2_deploy.commands.help import Told, list_panels, list_params, tell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "commands"
NAVIGATION = ROOT / "mkdocs.yml"
BEGIN = "      # Commands: written by scripts/write_command_pages.py\n"
END = "      # End of commands\n"
MADE = "<!-- Written by scripts/write_command_pages.py: change the command's help instead. -->"
GROUP: Any = get_command(app)

_TYPES = {
    "int": "integer",
    "float": "number",
    "str": "text",
    "path": "path",
    "Path": "path",
    "bool": "flag",
}
# What typer writes behind an option's text: "[env var: X; default: 3; 1 or more; required]".
_FACTS = re.compile(r"(?:^|  )\[([^\[\]]*)\]$")
_VARIABLE = re.compile(r"^env var: (\w+)$")
_CODE = re.compile(
    r"(?<![`\w])(lfm2-deploy COMMAND --help|--[a-z][a-z-]+|\w+\.json|LFM2_DEPLOY_\w+)(?![`\w])"
)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment.

    Args:
        name: of the variable.
        meaning: what its values do, as Markdown.
        option: the commands that have this option look at it; "" for all commands.
    """

    name: str
    meaning: str
    option: str = ""


VARIABLES = (
    Variable("LFM2_DEPLOY_TRACEBACK", "1 adds Python's traceback to errors."),
    Variable("LFM2_DEPLOY_API_KEY", "A key that lets clients in.", "--api-key-file"),
    Variable(
        "LFM2_DEPLOY_CANARY",
        "When a bundle's canary is run at loading: `auto` (the default: once for each device and "
        "driver), `always` or `off`. An option `--canary` comes before it.",
        "--device",
    ),
    Variable(
        "LFM2_DEPLOY_REMEMBER",
        "0 keeps nothing of what was found out about devices, so that checks run at every load.",
        "--device",
    ),
    Variable(
        "LFM2_DEPLOY_GRAPH_CAPTURE",
        "0 computes single tokens on a GPU by plain calls, without recording and replaying them.",
        "--device",
    ),
    Variable(
        "LFM2_DEPLOY_OPENVINO_TELEMETRY",
        "1 leaves OpenVINO's telemetry as OpenVINO has it. Otherwise it is off.",
        "--device",
    ),
    Variable("LFM2_DEPLOY_STORE", "The folder of the store of models; see `pull`."),
    Variable(
        "XDG_DATA_HOME",
        "On Linux, the folder in which the store is `lfm2-deploy/models`; on Windows "
        "`LOCALAPPDATA`. `LFM2_DEPLOY_STORE` comes before it.",
    ),
    Variable(
        "XDG_CACHE_HOME",
        "Where the cache folder lies; on Windows `LOCALAPPDATA`.",
        "--device",
    ),
    Variable("HF_ENDPOINT, HF_TOKEN, HF_HOME", "As huggingface_hub reads them.", "--revision"),
    Variable("NO_COLOR", "Any value switches colours off."),
)
_CACHE = "`~/.cache/lfm2-deploy/` (on Windows `%LOCALAPPDATA%\\lfm2-deploy\\`)"
_STORE = (
    "`~/.local/share/lfm2-deploy/models/` (on Windows `%LOCALAPPDATA%\\lfm2-deploy\\models\\`, on "
    "macOS `~/Library/Application Support/lfm2-deploy/models/`)",
    "The store: a folder for each model, by its name.",
)
_BUNDLE = ("`BUNDLE/manifest.json`", "What makes a folder a bundle: files, hashes, graphs, states.")
_CARD = (
    "`BUNDLE/README.md`, `BUNDLE/measurements.json`",
    "The model card, and what was measured with `--record`; neither is in the manifest.",
)
_RECORDS = (_CACHE, "What is known of this computer's devices, and prepared weights.")
FILES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "demo": ((_CACHE, "The demo model's bundle, unless `--out` says otherwise."),),
    "export": (
        _BUNDLE,
        (
            "`.OUT.partial` and more beside `OUT`",
            "What an unfinished export has so far, for `--resume`; gone when the bundle is whole.",
        ),
    ),
    "prepare": ((_CACHE, "The copy of the weights."),),
    **dict.fromkeys(("pull", "list", "remove"), (_STORE,)),
    "card": (_CARD,),
    "compare": ((_CACHE, "Answers of references, so that the next comparison begins at once."),),
}
# Guides that tell more than a page of options can.
GUIDES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bench": (("../run.md", "Run and chat"),),
    "chat": (("../run.md", "Run and chat"),),
    "check": (("../canary.md", "The canary"),),
    "compare": (("../compare.md", "How far from the model: `compare`"),),
    "compile": (("../npu.md", "Intel NPUs"),),
    "demo": (("../index.md", "Getting started"),),
    "doctor": (("../targets.md", "Which target `auto` chooses"),),
    "eval": (("../eval.md", "Benchmarks"),),
    "export": (
        ("../targets.md", "Which target `auto` chooses"),
        ("../quantization.md", "How weights are rounded"),
    ),
    "generate": (("../run.md", "Run and chat"),),
    "inspect": (("../quantization.md", "How weights are rounded"),),
    "lint": (("../lint.md", "Every rule, with its source"),),
    "prepare": (("../run.md", "Run and chat"),),
    **dict.fromkeys(("pull", "list", "remove"), (("../store.md", "Models by name"),)),
    **dict.fromkeys(("card", "push"), (("../publish.md", "Publish a bundle"),)),
    "serve": (("../server.md", "Serve to apps"), ("../tools.md", "Tools")),
    "verify": (("../compare.md", "How far from the model: `compare`"),),
}


def write_pages() -> dict[str, str]:
    """The pages by file name."""
    pages = {f"{name}.md": "\n".join(_write_page(name)) + "\n" for name in GROUP.commands}
    return {"index.md": "\n".join(_write_index()) + "\n", **pages}


def write_navigation(text: str) -> str:
    """mkdocs.yml with the list of pages between its marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{NAVIGATION} lacks the lines {BEGIN.strip()!r} and {END.strip()!r}")
    lines = ["      - All commands: commands/index.md"]
    for panel, names in list_panels(GROUP):
        lines.append(f"      - {panel}:")
        lines += [f"          - {name}: commands/{name}.md" for name in names]
    return before + begin + "".join(f"{line}\n" for line in lines) + end + after


def list_exit_codes() -> list[tuple[str, str]]:
    """(code, meaning) as the module that gives them says."""
    told = re.findall(r"^ {4}(\d+) +(.+)$", failures.__doc__ or "", re.MULTILINE)
    if not told:
        raise SystemExit("the docstring of commands/failures.py lists no exit codes any more")
    return list(told)


def _write_index() -> Iterator[str]:
    context = GROUP.make_context(PROGRAM, [])
    paragraphs, blocks = _split_help(GROUP.help)
    yield f"# {PROGRAM}\n\n{MADE}\n"
    yield from paragraphs
    yield "## Synopsis\n"
    yield f"```\n{PROGRAM} COMMAND [OPTIONS] [ARGS]...\n{PROGRAM} COMMAND --help\n```\n"
    for title, lines in blocks.items():
        yield f"## {title}\n"
        yield _fence(lines)
    yield "## Commands\n"
    for panel, names in list_panels(GROUP):
        yield f"**{panel}**\n\n| command | purpose |\n|---|---|"
        yield from (f"| [{name}]({name}.md) | {tell(GROUP.commands[name])} |" for name in names)
        yield ""
    yield from _write_options(GROUP, context)
    yield from _write_completion()
    yield from _write_exit_status()
    yield "## Environment\n\n| variable | meaning |\n|---|---|"
    yield from (f"| {_name(variable.name)} | {variable.meaning} |" for variable in VARIABLES)
    yield "\n## Files\n\n| file | what it is |\n|---|---|"
    yield from (f"| {file} | {what} |" for file, what in (_BUNDLE, _STORE, _RECORDS))


def _write_completion() -> Iterator[str]:
    yield "## Completion\n"
    yield (
        "Commands, options, bundles, targets, devices and models are completed with Tab in bash, "
        "zsh, fish and PowerShell:\n"
    )
    yield f"```sh\n{PROGRAM} --install-completion\n```\n"
    yield (
        "It begins with the next shell. `--show-completion` prints the script instead, to keep it "
        "elsewhere; `--shell NAME` names a shell that cannot be found out.\n"
    )


def _write_page(name: str) -> Iterator[str]:
    command = GROUP.commands[name]
    context = command.make_context(name, [], resilient_parsing=True)
    paragraphs, blocks = _split_help(command.help)
    usage = " ".join([PROGRAM, name, *command.collect_usage_pieces(context)])
    yield f"# {name}\n\n{MADE}\n"
    yield f"## Name\n\n`{PROGRAM} {name}` — {paragraphs[0]}"
    yield f"## Synopsis\n\n```\n{usage}\n```\n"
    if paragraphs[1:]:
        yield "## Description\n"
        yield from paragraphs[1:]
    yield from _write_options(command, context)
    yield f"## Examples\n\n{_fence(blocks.get('Examples', []))}"
    yield from _write_exit_status()
    yield "## Environment\n\n| variable | meaning |\n|---|---|"
    yield from (f"| {_name(one.name)} | {one.meaning} |" for one in _list_variables(command))
    files = _list_files(name, command)
    if files:
        yield "\n## Files\n\n| file | what it is |\n|---|---|"
        yield from (f"| {file} | {what} |" for file, what in files)
    yield "\n## See also\n"
    yield from _write_see_also(name, blocks.get("See also", []))


def _write_see_also(name: str, lines: list[str]) -> Iterator[str]:
    for line in lines:
        written, _, told = line.partition("  ")
        other = written.split()[1]
        yield f"- [`{written}`]({other}.md): {told.strip()}"
    yield from (f"- [{title}]({place})" for place, title in GUIDES.get(name, ()))
    yield "- [All commands](index.md), [errors and exit codes](../errors.md)"


def _write_options(command: Any, context: Any) -> Iterator[str]:
    for title, params in list_params(command, context):
        kind = "argument" if title == "Arguments" else "option"
        yield f"## {title}" if title in ("Arguments", "Options") else f"### {title}"
        yield f"\n| {kind} | what it does | type | default |\n|---|---|---|---|"
        yield from (_write_option(told, context) for told in params)
        yield ""


def _write_option(told: Told, context: Any) -> str:
    match = _FACTS.search(told.text)
    text = told.text[: match.start()] if match else told.text
    facts = match[1].split("; ") if match else []
    defaults = [fact for fact in facts if fact == "required" or fact.startswith("default: ")]
    default = ", ".join(fact.removeprefix("default: ") for fact in defaults)
    limits = [_VARIABLE.sub(r"variable `\1`", fact) for fact in facts if fact not in defaults]
    kind = ", ".join([_name_type(told.param, context), *limits])
    names = ", ".join(f"`{part}`" for part in re.split(r", | / ", told.written))
    return f"| {names} | {_escape(text)} | {_escape(kind)} | {_escape(default)} |"


def _name_type(param: Any, context: Any) -> str:
    if getattr(param, "is_flag", False):
        return "flag"
    shown = str(param.display_type(context)).strip("<>")
    several = shown.startswith("list[") or param.nargs == -1
    shown = shown.removeprefix("list[").removesuffix("]").removesuffix(" range").strip("<>")
    choices = [f"`{choice}`" for choice in shown.split("|")]
    named = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices[1:] else _TYPES.get(shown)
    named = named or "text"
    return f"{named}, several" if several else named


def _write_exit_status() -> Iterator[str]:
    yield "## Exit status\n\n| code | meaning |\n|---|---|"
    yield from (f"| {code} | {meaning} |" for code, meaning in list_exit_codes())
    yield ""


def _list_variables(command: Any) -> list[Variable]:
    options = {option for param in command.params for option in param.opts}
    return [one for one in VARIABLES if not one.option or one.option in options]


def _list_files(name: str, command: Any) -> tuple[tuple[str, str], ...]:
    takes_bundle = any("BUNDLE" in (param.metavar or "") for param in command.params)
    runs = any("--device" in param.opts for param in command.params)
    shared = (*((_BUNDLE, _STORE) if takes_bundle else ()), *((_RECORDS,) if runs else ()))
    return (*FILES.get(name, ()), *shared)


def _split_help(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """A docstring -> its paragraphs as Markdown, and its blocks of lines by title."""
    paragraphs, blocks = [], {}
    for part in text.replace("\f", "").split("\n\n"):
        body = part.strip("\n")
        if body.lstrip().startswith("\b"):
            title, *lines = body.replace("\b", "").strip().splitlines()
            blocks[title.removesuffix(":")] = [line.strip() for line in lines]
        elif body.strip():
            paragraphs.append(_CODE.sub(r"`\1`", " ".join(body.split())) + "\n")
    return paragraphs, blocks


def _fence(lines: list[str]) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```\n"


def _name(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _escape(text: str) -> str:
    # "<|tool_call_start|>" is no HTML, and "|" ends a cell, in code as well; "*" stands for itself.
    text = re.sub(r"<\|(\w+)\|>", r"<code>&lt;&#124;\1&#124;&gt;</code>", text)
    text = text.replace("|", "&#124;")
    return _CODE.sub(r"`\1`", re.sub(r"(?<=\s)\*(?=\s)", r"\\*", text))


def main() -> int:
    """Write all pages, remove those of commands that are gone."""
    FOLDER.mkdir(exist_ok=True)
    pages = write_pages()
    for file in FOLDER.glob("*.md"):
        if file.name not in pages:
            file.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    written = write_navigation(NAVIGATION.read_text(encoding="utf-8"))
    NAVIGATION.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
