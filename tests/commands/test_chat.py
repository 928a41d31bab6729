"""`lfm2-deploy chat`, from a pipe and in a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

SHORT = ("--greedy", "--max-new-tokens", "6", "--threads", "1")


def test_piped_lines_are_messages_and_stdout_their_answers(run: Callable, bundle: Path) -> None:
    result = run("chat", bundle, *SHORT, stdin="Hello\n\nHello\n/reset\nHello\n")
    assert result.exit_code == 0
    answers = result.stdout.splitlines()
    assert len(answers) == 3
    assert answers[0] == answers[2]
    assert result.stderr.count("tok/s") == 3


def test_second_turn_tells_what_it_reused(run: Callable, bundle: Path) -> None:
    result = run("chat", bundle, *SHORT, stdin="Hello\nHello\n/edit Hello\n/undo\n/regenerate\n")
    assert result.exit_code == 0
    first, second, edited, undone, again = result.stderr.splitlines()
    assert "reused" not in first
    assert all("tokens reused" in line for line in (second, edited, again))
    assert "taken back" in undone
    answers = result.stdout.splitlines()
    assert answers[1] == answers[2]
    assert answers[0] == answers[3]


def test_system_option_reaches_the_model(run: Callable, bundle: Path) -> None:
    plain = run("chat", bundle, *SHORT, stdin="Hello\n")
    kind = run("chat", bundle, *SHORT, "--system", "Be kind.", stdin="Hello\n")
    given = run("chat", bundle, *SHORT, stdin="/system Be kind.\nHello\n")
    assert kind.stdout == given.stdout
    assert "context" in plain.stderr
    assert plain.stderr != kind.stderr


def test_saved_conversation_holds_regenerated_answer(
    run: Callable, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    result = run("chat", bundle, *SHORT, stdin=f"Hello\n/regenerate\n/save {file}\n/exit\nno\n")
    assert result.exit_code == 0
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


def test_overflow_is_one_line_and_the_conversation_goes_on(run: Callable, bundle: Path) -> None:
    result = run("chat", bundle, *SHORT, stdin="Hello\n" + "and " * 3000 + "\n/regenerate\n")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "/reset" in errors[0]
    first, again = result.stdout.splitlines()
    assert first == again


@pytest.mark.parametrize(
    "line", ["/nope", "/save", "/regenerate", "/undo", "/edit", "/edit no turn yet"]
)
def test_command_that_cannot_be_obeyed_says_why(run: Callable, bundle: Path, line: str) -> None:
    result = run("chat", bundle, *SHORT, stdin=f"{line}\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_model_without_template_says_what_to_use(
    run: Callable, fails: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.chat import ChatTemplate

    monkeypatch.setattr(ChatTemplate, "find", lambda *_: None)
    fails(run("chat", bundle, stdin="Hello\n"), "no chat template", "lfm2-deploy generate")


@pytest.fixture
def terminal(program: Sequence[str], bundle: Path) -> Iterator[Callable[..., Any]]:
    """Start a chat in a terminal of its own."""
    pexpect = pytest.importorskip("pexpect")
    if not hasattr(pexpect, "spawn"):
        pytest.skip("needs a pseudo-terminal")
    started = []

    def start(*words: str, **variables: str) -> Any:
        child = pexpect.spawn(
            program[0],
            [*program[1:], "chat", str(bundle), "--threads", "1", *words],
            encoding="utf-8",
            timeout=30,
            env={**os.environ, "TERM": "xterm", **variables},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def finish(child: Any) -> int:
    child.expect_exact(_end_of_file())
    child.wait()  # closing would hang up on a program that is still leaving
    child.close()
    return int(child.exitstatus)


def _end_of_file() -> Any:
    return pytest.importorskip("pexpect").EOF


def test_interrupt_stops_the_answer_and_not_the_chat(terminal: Callable) -> None:
    child = terminal("--ignore-eos", "--max-new-tokens", "2000", NO_COLOR="1")
    child.expect_exact("Ctrl-D leaves")
    child.expect_exact("> ")
    child.sendline("My fellow Americans,")
    child.expect(r"\w+ \w+ \w+ \w+ \w+ \w+")
    child.sendintr()
    child.expect_exact("stopped")
    child.expect_exact("> ")
    child.sendintr()
    child.expect_exact("/exit leaves")
    child.expect_exact("> ")
    child.sendline("/exit")
    assert finish(child) == 0


def test_end_of_input_leaves(terminal: Callable) -> None:
    child = terminal(*SHORT[:3], NO_COLOR="1")
    child.expect_exact("lfm2-demo-9m, context of 2,048 tokens")
    child.expect_exact("> ")
    child.sendline("Hello")
    child.expect_exact("tok/s")
    child.expect_exact("> ")
    child.sendeof()
    assert finish(child) == 0


def test_colour_is_left_out_where_not_wanted(terminal: Callable) -> None:
    colour = "\x1b[1;36m"
    child = terminal(NO_COLOR="1")
    child.expect_exact("> ")
    plain = child.before
    child.sendeof()
    assert finish(child) == 0
    assert colour not in plain
    child = terminal()
    child.expect_exact(colour)
    child.sendeof()
    assert finish(child) == 0
