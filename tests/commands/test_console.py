"""How output looks."""

from __future__ import annotations

import io
import json
import math
import sys
import time

import pytest
from rich.console import Console

from lfm2_deploy.commands import console


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_600, "1 MB"),
        (35_500_000, "35.5 MB"),
        (16_000_000_000, "16 GB"),
        (3_000_000_000_000_000, "3e+03 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(size: int, text: str) -> None:
    assert console.format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(48, "48"), (4736, "4,736"), (12_288, "12.3 k"), (999_600, "1 M"), (8_340_000_000, "8.34 B")],
)
def test_counts_have_three_digits_from_ten_thousand_on(count: int, text: str) -> None:
    assert console.format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00264, "2.6 ms"), (0.1, "0.10 s"), (65, "65.00 s")]
)
def test_short_times_are_in_milliseconds(seconds: float, text: str) -> None:
    assert console.format_seconds(seconds) == text


def test_json_has_null_for_what_json_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": math.nan, "b": [1.5, math.inf], "c": {"d": "é"}})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [1.5, None], "c": {"d": "é"}}
    assert out.isascii()


def test_control_characters_are_replaced_and_newlines_kept() -> None:
    assert console.printable("a\x1b[1m\tb\n\x9b") == "a\ufffd[1m\tb\n\ufffd"


def test_table_aligns_and_leaves_no_trailing_space(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("name", ">size", "why"), [("漢字", "5", "[red]"), ("abcdef", "1234", "")])
    assert capsys.readouterr().out.splitlines() == [
        "  name    size  why",
        "  漢字       5  [red]",
        "  abcdef  1234",
    ]


def test_facts_are_labelled_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_facts({"path": "/a/" + "b" * 300, "": "more"})
    assert capsys.readouterr().out == f"  path  /a/{'b' * 300}\n        more\n"


@pytest.mark.parametrize(
    ("what", "stage"),
    [
        ("tracing", "tracing"),
        ("writing weights", "writing weights"),
        ("hashing model.onnx.data", "hashing"),
        ("download LiquidAI/LFM2-350M", "download"),
    ],
)
def test_stage_leaves_out_the_file(what: str, stage: str) -> None:
    assert console.name_stage(what) == stage


def test_progress_without_a_terminal_is_a_line_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.show_progress() as progress:
        progress("loading", 0, 0)
        progress("tracing", 0, 0)
        progress("writing weights", 1, 2)
        progress("writing weights", 2, 2)
        progress("hashing a.json", 0, 2)
        progress("hashing b.json", 1, 2)
        progress("hashed", 2, 2)
    assert capsys.readouterr() == ("", "tracing ...\nwriting weights ...\nhashing ...\n")


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_is_a_bar_that_gives_way_to_downloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with console.show_progress() as progress:
        progress("tracing", 0, 0)
        progress("download a/b", 0, 0)
        shown = len(screen.getvalue())
        progress("download a/b", 1, 1)
        progress("writing weights", 1, 2)
    assert "tracing" in screen.getvalue()[:shown]
    assert "download a/b ..." in screen.getvalue()[:shown]
    assert "writing weights" in screen.getvalue()[shown:]


def test_bar_shows_percentage_and_time_left_once_the_end_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with console.show_progress() as progress:
        progress("tracing", 0, 0)
    assert "%" not in screen.getvalue()
    assert "left" not in screen.getvalue()
    with console.show_progress() as progress:
        progress("writing weights", 0, 4)
        progress("writing weights", 1, 4)
        time.sleep(0.6)
        progress("writing weights", 2, 4)
    assert "50%" in screen.getvalue()
    assert "0:00:02 left" in screen.getvalue()


def test_model_output_is_made_harmless_for_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.write_text("a\x1b[2J")
    assert capsys.readouterr().out == "a\x1b[2J"
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    console.write_text("a\x1b[2J")
    assert screen.getvalue() == "a\ufffd[2J"


def test_long_fact_is_wrapped_at_spaces_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "output", lambda: terminal)
    flags = " ".join(["avx512_vnni"] * 12)
    console.print_facts({"driver": flags, "path": "/a" * 60})
    console.print_remark(flags)
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines if "avx" in line)
    assert {word for line in lines for word in line.split() if "avx" in word} == {"avx512_vnni"}
    # A path stays whole, for it may be pasted.
    assert "/a" * 60 in screen.getvalue().replace("\n", "")
