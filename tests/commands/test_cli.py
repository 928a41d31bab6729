"""What the command line says of itself, and what it costs to ask."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("demo", "export", "generate", "chat", "inspect", "verify", "doctor")
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "tokenizers", "jinja2", "transformers")


@pytest.mark.parametrize("words", [["--help"], ["export", "--help"], ["generate"], ["--version"]])
def test_asking_for_help_loads_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys; from lfm2_deploy.cli import app; "
        f"app({words!r}, standalone_mode=False); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(run: Callable, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout
    assert f"lfm2-deploy {command}" in result.stdout.partition("Examples:")[2]


def test_no_command_prints_help(run: Callable) -> None:
    result = run()
    assert result.exit_code == 0
    assert all(f"  {command} " in result.stdout for command in COMMANDS)


def test_version_is_the_packages(run: Callable) -> None:
    assert run("--version").stdout == f"lfm2-deploy {version('lfm2-deploy')}\n"


def test_misspelt_command_suggests_the_right_one(run: Callable, fails: Callable) -> None:
    fails(run("exprt", "x"), "'exprt'", "'export'", code=2)


def test_missing_argument_names_it_and_the_help(run: Callable, fails: Callable) -> None:
    fails(run("export"), "MODEL", "lfm2-deploy export --help", code=2)


def test_unknown_option_names_it(run: Callable, fails: Callable) -> None:
    fails(run("doctor", "--nope"), "--nope", code=2)


@pytest.fixture
def poor_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose encoding of text is ASCII."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setenv("LC_ALL", "C")


def chat_with(program: Sequence[str], bundle: Path, text: bytes) -> bytes:
    words = [*program, "chat", str(bundle), "--max-new-tokens", "1", "--threads", "1"]
    return subprocess.run(words, input=text, capture_output=True).stderr


@pytest.mark.usefixtures("poor_locale")
def test_pipes_are_utf8_whatever_the_locale(
    program: Sequence[str], bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    text = f"\ufeffGrüße, 漢字\n/save {file}\n/été\n".encode()
    error = chat_with(program, bundle, text).decode("utf-8")
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert messages[0]["content"] == "Grüße, 漢字"
    assert "no command /été:" in error


@pytest.mark.usefixtures("poor_locale")
def test_redirected_output_is_utf8_whatever_the_locale(
    program: Sequence[str], bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("Grüße\n漢字\n", encoding="utf-8")
    words = [*program, "generate", str(bundle), "--prompts-file", str(file)]
    done = subprocess.run([*words, "--max-new-tokens", "1"], capture_output=True)
    assert "--- 1 of 2: Grüße\n" in done.stdout.decode("utf-8")
    assert "--- 2 of 2: 漢字\n" in done.stdout.decode("utf-8")


@pytest.mark.usefixtures("poor_locale")
def test_encoding_that_the_user_asked_for_is_kept(
    program: Sequence[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert "/été:".encode("latin-1") in chat_with(program, bundle, "/été\n".encode("latin-1"))


def test_reader_that_goes_away_ends_it_silently(program: Sequence[str], bundle: object) -> None:
    words = [*program, "generate", str(bundle), "A", "--max-new-tokens", "900", "--ignore-eos"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("at", ["typer", "lfm2_deploy.commands.verify", "rich.text"])
def test_interruption_while_modules_are_imported_is_silent(at: str) -> None:
    # Ctrl-C comes where the module is looked for, on its way to any command.
    script = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {at!r}:\n"
        "            print('interrupted', flush=True)\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['lfm2-deploy', 'doctor']\n"
        "from lfm2_deploy.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_program_starts_where_interruptions_are_handled() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"lfm2-deploy": "lfm2_deploy.__main__:main"}
    script = (
        "import sys; import lfm2_deploy.__main__; "
        f"print([name for name in {(*HEAVY, 'typer', 'rich')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n"
