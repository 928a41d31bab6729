"""Shell completion: scripts for shells, installing them, and answering what they ask.

A shell asks by running the program with `_LFM2_DEPLOY_COMPLETE` set, and reads the answer from
stdout. typer speaks with bash, zsh, fish and PowerShell; here is what it leaves open: bash splits
words at ":" and "@", names hold spaces, and nothing may ever be written into a prompt. What a
word may become is in `completers`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from typer.core import TyperGroup

from lfm2_deploy.errors import UsageError

Shell = Literal["bash", "zsh", "fish", "powershell", "pwsh"]
SWITCH = "_LFM2_DEPLOY_COMPLETE"
_BASH = "complete_bash"
# Characters that bash ends a word at, as COMP_WORDBREAKS has them, and no other shell.
_BREAKS = re.compile(r"[:@=]+")
_SPECIAL = re.compile(r"([^\w@%+=:,./~-])")
_POWERSHELLS = ("powershell", "pwsh")
# What a shell reads first, where completion adds a line to it.
_STARTS = {"bash": ".bashrc", "zsh": ".zshrc"}
_REMARK = "# Completion of lfm2-deploy"


class ShellError(UsageError):
    """The shell is not known, or completion cannot be installed for it."""


def is_asked() -> bool:
    """Whether a shell runs this process to complete a word."""
    return bool(os.environ.get(SWITCH))


def answer(group: TyperGroup, program: str) -> int:
    """Write what the shell asks for to stdout, and never anything else.

    Args:
        group: the command line.
        program: its name.

    Returns:
        The exit code: 0, or what typer gives (fish asks whether there is anything by it).
    """
    try:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
        if os.environ[SWITCH] == _BASH:
            _join_words()
        for command in (group, *group.commands.values()):
            for param in command.params:
                _adapt(param)
            _adapt(command)
        TyperGroup.main(group, (), program, SWITCH, standalone_mode=False)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 1
    except BaseException:
        # Whatever it is, a message here would land in the line that somebody is typing.
        return 1
    return 0


def write_script(program: str, shell: str) -> str:
    """The script that teaches a shell to ask.

    Args:
        program: whose words are completed.
        shell: one of `Shell`.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    return str(get_completion_script(prog_name=program, complete_var=SWITCH, shell=shell))


def install(program: str, shell: str) -> Path:
    """Put the script where the shell reads it at its start.

    Args:
        program: whose words are completed.
        shell: one of `Shell`.

    Returns:
        The file that holds it.

    Raises:
        ShellError: PowerShell would not read it.
    """
    if shell in _POWERSHELLS:
        return _install_powershell(write_script(program, shell), shell)
    from typer.completion import install as write  # type: ignore[attr-defined]

    _, place = write(shell, program, SWITCH)
    return Path(place)


def install_telling(program: str, shell: str) -> list[str]:
    """As `install`; returns what was written where, and how to undo it, in sentences."""
    start = Path.home() / _STARTS[shell] if shell in _STARTS else None
    before = _list_lines(start)
    place = install(program, shell)
    told = [f"completion for {shell} is in {place}; it begins with the next shell"]
    if shell in _POWERSHELLS:
        return [*told, f"to undo: take what follows the line {_REMARK!r} out of it"]
    # A shell's line for this program's own file is taken out, whoever wrote it and when.
    ours = [
        line
        for line in _list_lines(start)
        if line.strip() and (line not in before or str(place) in line)
    ]
    told += [f"{start} has the line: {line}" for line in ours]
    lines = "that line" if len(ours) == 1 else "those lines"
    return [*told, f"to undo: delete {place}{f', and take {lines} out' if ours else ''}"]


def _list_lines(file: Path | None) -> list[str]:
    if file is None or not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def find_shell() -> str:
    """The shell that this process was started from.

    Raises:
        ShellError: it is none of those that are known.
    """
    import shellingham  # type: ignore[import-untyped]

    try:
        name = str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        name = ""
    if name not in get_args(Shell):
        seen = f"it is {name!r}" if name else "it cannot be told"
        raise ShellError(
            f"which shell this is matters, and {seen}: add --shell with one of "
            f"{', '.join(get_args(Shell))}"
        )
    return name


def _join_words() -> None:
    """Put together again what bash took apart: "synthetic", ":", "tiny" is one word."""
    words = os.environ["COMP_WORDS"].split("\n")
    at = int(os.environ["COMP_CWORD"])
    joined: list[str] = []
    place = 0
    for index, word in enumerate(words):
        follows = index > 1 and (_BREAKS.fullmatch(word) or _BREAKS.fullmatch(words[index - 1]))
        if follows and word:
            joined[-1] += word
        elif follows and _BREAKS.fullmatch(words[index - 1]):
            pass  # the empty word at the cursor, right behind a break
        else:
            joined.append(word)
        if index == at:
            place = len(joined) - 1
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(joined), str(place)


def _adapt(completed: Any) -> None:
    """Have values of a command or parameter written as the shell takes them."""
    original: Callable[[Any, str], Iterable[Any]] = completed.shell_complete

    def shell_complete(context: Any, incomplete: str) -> list[Any]:
        items = list(original(context, incomplete))
        for item in items:
            item.value = _spell(str(item.value), incomplete)
            # In zsh and fish a help text stands beside the word: its first sentence is enough.
            item.help = item.help and item.help.partition(". ")[0]
        return items

    completed.shell_complete = shell_complete


def _spell(value: str, incomplete: str) -> str:
    """A value as the shell that asks must insert it."""
    asks = os.environ.get(SWITCH, "").removeprefix("complete_")
    if asks == "bash":
        return _spell_for_bash(value, incomplete)
    typed = os.environ.get("_TYPER_COMPLETE_ARGS", "").rpartition(" ")[2]
    typed = os.environ.get("_TYPER_COMPLETE_WORD_TO_COMPLETE") or typed
    option, equals, _ = typed.partition("=")
    if equals and option.startswith("--"):
        value = f"{option}={value}"  # only bash takes this for two words
    if asks in _POWERSHELLS and _SPECIAL.search(value):
        value = "'" + value.replace("'", "''") + "'"
    return value


def _spell_for_bash(value: str, incomplete: str) -> str:
    word = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"])]
    if word[:1] in ("'", '"'):
        return value  # bash neither ends a word inside quotes, nor wants spaces escaped there
    # bash replaces only what is behind the last break; "@" itself as well.
    typed = max(incomplete.rfind(":") + 1, incomplete.rfind("=") + 1, incomplete.rfind("@"), 0)
    return _SPECIAL.sub(r"\\\1", value[typed:])


def _install_powershell(script: str, shell: str) -> Path:
    """Append to the profile, once. typer would also lift the execution policy, unasked."""
    policy = _ask_powershell(shell, "Get-ExecutionPolicy")
    if policy in ("Restricted", "AllSigned"):
        raise ShellError(
            f"PowerShell's execution policy is {policy}, so it runs no profile: first "
            "Set-ExecutionPolicy RemoteSigned -Scope CurrentUser, or try it in this window with "
            "lfm2-deploy --show-completion --shell powershell | Out-String | Invoke-Expression"
        )
    profile = Path(_ask_powershell(shell, "$PROFILE"))
    before = profile.read_text(encoding="utf-8-sig") if profile.is_file() else ""
    if _REMARK not in before:
        profile.parent.mkdir(parents=True, exist_ok=True)
        with profile.open("a", encoding="utf-8") as file:
            file.write(f"\n{_REMARK}\n{script}\n")
    return profile


def _ask_powershell(shell: str, expression: str) -> str:
    words = [shell, "-NoProfile", "-Command", expression]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ShellError(
            f"{shell} does not tell its {expression} ({error}): add what "
            f"lfm2-deploy --show-completion --shell {shell} writes to your profile by hand"
        ) from error
    return done.stdout.strip()
