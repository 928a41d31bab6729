"""The window of samples/desktop: without a screen, and on a virtual one."""

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
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("PySide6", reason="not run: PySide6 is not installed")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
try:
    from PySide6 import QtWidgets
    from PySide6.QtCore import Qt, QTimer
    from PySide6.QtWidgets import QApplication
except ImportError as error:  # a library of the system's that Qt needs
    pytest.skip(f"not run: Qt does not load ({error})", allow_module_level=True)

from lfm2_deploy import open_bundle
from lfm2_deploy.serving import engine as engine_module

FOLDER = Path(__file__).parents[2] / "samples" / "desktop"
SAMPLE = FOLDER / "app.py"
# Long for the demo model, which takes a tenth of that.
PATIENCE_SECONDS = 30.0
# What is slow is slow for so long. A thread that waits for it is told from one that does not by
# a quarter of that, which leaves room for a machine that is busy with something else.
SLOW_SECONDS, NOTICED_SECONDS = 1.0, 0.25

# Closes the window in the midst of an answer that would take minutes.
CLOSE_WHILE_ANSWERING = """
import os, runpy, sys
from PySide6.QtWidgets import QApplication, QLineEdit, QTextEdit
from lfm2_deploy.serving.engine import Engine

sys.argv[:] = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
stream, run = Engine.stream, QApplication.exec
Engine.stream = lambda self, words: stream(self, words, ignore_eos=True, max_new_tokens=1900)

def close_at_answer(window, text):
    if text.toPlainText().partition("\\n")[2]:
        window.close()

def run_until_answered(app):
    window, = [widget for widget in app.topLevelWidgets() if widget.isVisible()]
    line, text = window.findChild(QLineEdit), window.findChild(QTextEdit)
    line.setText("Who goes there?")
    line.returnPressed.emit()
    text.textChanged.connect(lambda: close_at_answer(window, text))
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


@contextmanager
def open_window(bundle: str) -> Iterator[Window]:
    """The sample's names and its window's; its first load has ended, well or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SAMPLE), bundle])
        patch.setattr(QApplication, "exec", lambda self: 0)
        patch.setattr(ThreadPool, "terminate", lambda self: None)  # its end has not come
        # Qt wants one of them in a process.
        patch.setattr(
            QtWidgets, "QApplication", lambda words: QApplication.instance() or QApplication(words)
        )
        patch.syspath_prepend(str(FOLDER))
        sample = runpy.run_path(str(SAMPLE))
    for file in FOLDER.glob("*.py"):
        sys.modules.pop(file.stem, None)
    window = SimpleNamespace(**vars(sample["window"]), **sample)
    rest(window)
    yield window
    window.worker.pool.terminate()
    if window.worker.engine:
        window.worker.engine.close()
    window.window.close()


@pytest.fixture(scope="module")
def window(bundle: Path) -> Iterator[Window]:
    stream = engine_module.Engine.stream
    with pytest.MonkeyPatch.context() as patch, open_window(str(bundle)) as window:
        # Short, so that the tests are.
        short = {"max_new_tokens": 40, "seed": 1}
        patch.setattr(
            engine_module.Engine,
            "stream",
            lambda self, messages, **options: stream(self, messages, **{**short, **options}),
        )
        assert window.worker.engine is not None, window.text.toPlainText()
        yield window


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


def rest(window: Window) -> None:
    """Wait until all is done that was begun, and shown."""
    done = window.worker.pool.apply_async(int)
    wait(window, done.ready)
    window.app.processEvents()


def ask(window: Window, question: str) -> None:
    window.line.setText(question)
    window.line.returnPressed.emit()


def choose(window: Window, device: str) -> None:
    """As a user does, also of a device that is not offered here."""
    if window.devices.findText(device) < 0:
        window.devices.addItem(device)
    window.devices.setCurrentText(device)
    window.devices.activated.emit(window.devices.currentIndex())


@pytest.fixture
def endless(window: Window, monkeypatch: pytest.MonkeyPatch) -> Window:
    """A new conversation, whose answers would take minutes."""
    stream = window.worker.engine.stream
    options = {"ignore_eos": True, "max_new_tokens": 1900}
    monkeypatch.setattr(
        window.worker.engine, "stream", lambda messages: stream(messages, **options)
    )
    window.text.clear()
    window.worker.chat.messages.clear()
    return window


def test_question_and_answer_stand_in_transcript_and_line_is_empty(window: Window) -> None:
    pieces: list[str] = []
    window.worker.wrote.connect(pieces.append)
    ask(window, " Who goes there? ")
    rest(window)
    question, answer = window.text.toPlainText().strip().split("\n")
    assert question == "> Who goes there?"
    assert len(answer.split()) > 3
    assert len(pieces) > 5, "it did not come in pieces"
    assert window.line.text() == ""
    assert window.worker.chat.messages[1]["content"] == answer


def test_next_question_follows_conversation(window: Window) -> None:
    ask(window, "Who goes there?")
    ask(window, "And then?")
    rest(window)
    roles = [message["role"] for message in window.worker.chat.messages]
    assert roles[-4:] == ["user", "assistant", "user", "assistant"]
    assert window.worker.chat.messages[-2]["content"] == "And then?"


def test_question_can_be_typed_at_once(window: Window) -> None:
    assert window.window.focusWidget() is window.line


def test_empty_line_asks_nothing(window: Window) -> None:
    before = window.text.toPlainText()
    ask(window, "  ")
    rest(window)
    assert window.text.toPlainText() == before


def test_transcript_can_be_copied_and_not_written_in(window: Window) -> None:
    assert window.text.isReadOnly()
    assert window.text.textInteractionFlags() & Qt.TextInteractionFlag.TextSelectableByMouse


def test_conversation_that_fills_context_loses_its_oldest_turns(
    window: Window, bundle: Path
) -> None:
    chat = window.worker.chat
    long = "word " * (open_bundle(bundle).manifest.context_length // 3)
    chat.messages[:] = [
        {"role": role, "content": long} for _ in range(3) for role in ("user", "assistant")
    ]
    ask(window, "Who goes there?")
    rest(window)
    assert [message["content"] == long for message in chat.messages][-2:] == [False, False]
    assert 2 <= len(chat.messages) < 8


def test_slow_load_leaves_window_responsive(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = engine_module.load

    def load_slowly(*words: Any, **options: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return load(*words, **options)

    monkeypatch.setattr(engine_module, "load", load_slowly)
    before = window.worker.engine
    choose(window, "cpu")
    assert wait(window, lambda: window.worker.engine is not before) < NOTICED_SECONDS
    rest(window)
    assert (window.devices.currentText(), window.bar.value()) == ("cpu", 100)


def test_stop_ends_answer_and_what_waits_and_window_stays_responsive(endless: Window) -> None:
    window = endless
    cancelled = window.worker.engine.state.answers.get("cancelled", 0)
    ask(window, "Who goes there?")
    ask(window, "And then?")
    longest = wait(window, lambda: len(window.text.toPlainText()) > 40)
    window.stop.click()
    rest(window)
    assert longest < NOTICED_SECONDS
    assert window.worker.engine.state.answers["cancelled"] == cancelled + 1
    assert "And then?" not in window.text.toPlainText()
    assert [message["role"] for message in window.worker.chat.messages] == ["user", "assistant"]
    ask(window, "And now?")
    wait(window, lambda: "> And now?" in window.text.toPlainText())
    window.stop.click()
    rest(window)


def test_text_follows_answer_until_reader_scrolls_up(endless: Window) -> None:
    window, place = endless, endless.text.verticalScrollBar()
    window.text.setMinimumHeight(60)  # a few lines, so that they soon do not fit
    window.window.resize(640, 200)
    ask(window, "Who goes there?")
    wait(window, lambda: place.maximum() > 40)  # pixels
    assert place.value() == place.maximum()
    place.setValue(0)
    reached = place.maximum()
    wait(window, lambda: place.maximum() > reached)
    window.stop.click()
    rest(window)
    assert place.value() == 0


def test_refused_device_is_one_line_and_combo_shows_the_one_that_answers(window: Window) -> None:
    choose(window, "cpu")
    rest(window)
    before = window.worker.engine
    window.text.clear()
    choose(window, "gpu")
    rest(window)
    assert "cannot run on 'gpu'" in window.text.toPlainText()
    assert window.text.toPlainText().strip().count("\n") == 0
    assert window.worker.engine is before
    assert window.devices.currentText() == "cpu"
    assert (window.bar.value(), window.bar.format()) == (100, before.model.runtime.info.device)
    ask(window, "Who goes there?")
    rest(window)
    assert len(window.text.toPlainText().split()) > 20


def test_devices_are_those_of_bundles_runtime_and_its_own_is_first(window: Window) -> None:
    offered = [window.devices.itemText(at) for at in range(window.devices.count())]
    assert offered[:2] == ["the bundle's device", "cpu"]
    assert not {"npu", "emulator"} & {*offered}


def test_bundle_that_cannot_be_loaded_is_told_in_window_and_so_are_questions(
    window: Window, tmp_path: Path
) -> None:
    with open_window(str(tmp_path / "none")) as other:
        said = other.text.toPlainText()
        assert "none" in said
        assert other.bar.format() == "no model is loaded"
        assert other.bar.value() <= 0
        ask(other, "Who goes there?")
        rest(other)
        assert "no model is loaded: choose another device" in other.text.toPlainText()


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
        below = str(height - 22)  # the question's line is the last, and 22 to 30 pixels high
        xdotool(desktop, *find, "windowfocus", "mousemove", "--window", "%1", "400", below)
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
