"""The window of samples/desktop_app.py: without a screen, and on a virtual one."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("PySide6", reason="not run: PySide6 is not installed")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
try:
    from PySide6.QtCore import QTimer
    from PySide6.QtWidgets import QApplication
except ImportError as error:  # a library of the system's that Qt needs
    pytest.skip(f"not run: Qt does not load ({error})", allow_module_level=True)

from lfm2_deploy.serving import engine as engine_module

SAMPLE = Path(__file__).parents[2] / "samples" / "desktop_app.py"
# Long for the demo model, which takes a tenth of that.
PATIENCE_SECONDS = 30.0
# What is slow is slow for so long. A thread that waits for it is told from one that does not by
# a quarter of that, which leaves room for a machine that is busy with something else.
SLOW_SECONDS, NOTICED_SECONDS = 1.0, 0.25

# Closes the window in the midst of an answer that would take minutes.
CLOSE_WHILE_ANSWERING = """
import runpy, sys
from PySide6.QtWidgets import QApplication, QLineEdit, QPlainTextEdit
from lfm2_deploy.serving.engine import Engine

sys.argv[:] = sys.argv[1:]
stream, run = Engine.stream, QApplication.exec
Engine.stream = lambda self, words: stream(self, words, ignore_eos=True, max_new_tokens=1900)

def run_until_answered(app):
    window, = [widget for widget in app.topLevelWidgets() if widget.isVisible()]
    line, text = window.findChild(QLineEdit), window.findChild(QPlainTextEdit)
    line.setText("Who goes there?")
    line.returnPressed.emit()
    text.textChanged.connect(window.close)
    return run()

QApplication.exec = run_until_answered
runpy.run_path(sys.argv[0])
"""
COUNT_DARK = """
from PySide6.QtGui import QGuiApplication
app = QGuiApplication([])
image = app.primaryScreen().grabWindow(0, 4, 50, 400, 300).toImage()
print(sum(image.pixelColor(x, y).lightness() < 128 for x in range(400) for y in range(300)))
"""
Window = SimpleNamespace


@pytest.fixture(scope="module")
def window(bundle: Path) -> Iterator[Window]:
    """What the sample puts on the screen, by its own names; its first load has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SAMPLE), str(bundle)])
        patch.setattr(QApplication, "exec", lambda self: 0)
        window = SimpleNamespace(**runpy.run_path(str(SAMPLE)))
    wait(window, lambda: window.bar.value() == 100)
    yield window
    window.ui.pool.terminate()
    window.ui.engine.close()
    window.ui.close()


def wait(window: Window, until: Callable[[], bool]) -> float:
    """Let the window work until something holds; return the longest time it did not."""
    beats = [time.perf_counter()]
    heart = QTimer(interval=5, timeout=lambda: beats.append(time.perf_counter()))
    heart.start()
    end = beats[0] + PATIENCE_SECONDS
    while not until():
        assert time.perf_counter() < end, f"still waiting: {window.text.toPlainText()!r}"
        window.app.processEvents()
        time.sleep(0.001)
    heart.stop()
    beats.append(time.perf_counter())
    return max(after - before for before, after in pairwise(beats))


def ask(window: Window, question: str) -> None:
    window.text.clear()
    window.line.setText(question)
    window.line.returnPressed.emit()


def choose(window: Window, device: str) -> None:
    window.text.clear()
    window.bar.reset()
    window.devices.setCurrentText(device)


def test_question_is_answered_in_pieces(window: Window) -> None:
    pieces: list[str] = []
    window.ui.said.connect(pieces.append)
    ask(window, "Who goes there?")
    wait(window, lambda: window.text.toPlainText().endswith("\n"))
    assert len(pieces) > 3
    assert window.text.toPlainText() == "".join(pieces)


def test_slow_load_leaves_window_responsive(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engine_module.load

    def load_slowly(*words: Any, **options: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return load(*words, **options)

    monkeypatch.setattr(engine_module, "load", load_slowly)
    before = window.ui.engine
    window.bar.reset()
    window.devices.currentTextChanged.emit("cpu")
    assert wait(window, lambda: window.bar.value() == 100) < NOTICED_SECONDS
    wait(window, lambda: window.ui.engine is not before)


def test_stop_ends_answer_and_window_stays_responsive(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = window.ui.engine
    stream = engine.stream
    endless = {"ignore_eos": True, "max_new_tokens": 1900}
    monkeypatch.setattr(engine, "stream", lambda messages: stream(messages, **endless))
    window.text.setMinimumHeight(60)  # a few lines, so that they soon do not fit
    window.ui.resize(640, 200)
    ask(window, "Who goes there?")
    longest = wait(window, lambda: window.text.verticalScrollBar().maximum() > 2)
    window.stop.click()
    wait(window, lambda: window.text.toPlainText().endswith("\n") and not engine.state.running)
    assert longest < NOTICED_SECONDS
    assert engine.state.answers["cancelled"] == 1
    place = window.text.verticalScrollBar()
    assert place.value() >= place.maximum() - 1 > 0  # the last line is empty


def test_device_that_is_not_there_is_one_line_and_engine_stays(window: Window) -> None:
    before = window.ui.engine
    choose(window, "gpu")
    wait(window, lambda: window.text.toPlainText() != "")
    assert "cannot run on 'gpu'" in window.text.toPlainText()
    assert window.text.toPlainText().count("\n") == 1
    assert window.ui.engine is before
    ask(window, "Who goes there?")
    wait(window, lambda: window.text.toPlainText().endswith("\n"))
    assert len(window.text.toPlainText().split()) > 3


def test_window_closed_while_it_answers_ends_program(bundle: Path) -> None:
    command = [sys.executable, "-c", CLOSE_WHILE_ANSWERING, str(SAMPLE), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(
    not shutil.which("Xvfb") or not shutil.which("xdotool"),
    reason="not run: there is no Xvfb or no xdotool here",
)
def test_question_typed_on_a_screen_is_answered_there(bundle: Path) -> None:
    with open_screen() as desktop, run(desktop, sys.executable, str(SAMPLE), str(bundle)):
        find = ["search", "--sync", "--onlyvisible", "--name", bundle.name]
        found = xdotool(desktop, *find, "getwindowgeometry", "--shell")
        height = int(found.partition("HEIGHT=")[2].split()[0])
        before = count_dark(desktop)
        # The question's line is the third from below, and lines are 22 to 30 pixels high.
        below = str(height - 64)
        xdotool(desktop, *find, "windowfocus", "mousemove", "--window", "%1", "99", below)
        xdotool(desktop, "click", "1", "type", "--delay", "20", "Who goes there?")
        xdotool(desktop, "key", "Return")
        end = time.monotonic() + PATIENCE_SECONDS
        while count_dark(desktop) < before + 400:  # as many as a line of text has at least
            assert time.monotonic() < end


@contextmanager
def run(environment: dict[str, str], *command: str, **options: Any) -> Iterator[None]:
    """A program that is ended."""
    with subprocess.Popen(command, env=environment, **options) as program:
        try:
            yield
        finally:  # else leaving waits for its end, whatever has failed
            program.kill()


@contextmanager
def open_screen() -> Iterator[dict[str, str]]:
    """The environment of programs that are to show on a virtual screen."""
    read, write = os.pipe()
    here = dict(os.environ)
    with run(here, "Xvfb", "-displayfd", str(write), pass_fds=[write]):
        os.close(write)
        with os.fdopen(read) as number:
            yield {**here, "DISPLAY": f":{number.readline().strip()}", "QT_QPA_PLATFORM": "xcb"}


def xdotool(desktop: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        ["xdotool", *words], env=desktop, check=True, timeout=60, capture_output=True, text=True
    )
    return done.stdout


def count_dark(desktop: dict[str, str]) -> int:
    """Dark pixels on the screen where answers stand."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_DARK], env=desktop, check=True, timeout=60, capture_output=True
    )
    return int(done.stdout)
