"""The page against `lfm2-deploy serve` with the demo model: what it says is chance."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from lfm2_deploy.api import export
from lfm2_deploy.demo import DEMO_MODEL

from .person import Person

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Route

# In a request: an answer goes on to the end of the context, which takes seconds.
_ENDLESS = {"ignore_eos": True}


class Served:
    """A server in a process of its own, which can be killed and comes back at the same address."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = str(found.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        command = [sys.executable, "-m", "lfm2_deploy", "serve", str(self._bundle)]
        command += ["--port", self._port, "--log", "off"]
        self._running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert "chat at " in line, line

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()
        assert self._running.stdout is not None
        self._running.stdout.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundle = export(str(DEMO_MODEL), tmp_path_factory.mktemp("page") / "demo").path
    running = Served(bundle)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def visitor(browser: Browser, served: Served) -> Iterator[Person]:
    """Somebody at the real server, whose answers are long and always the same."""
    context = browser.new_context(reduced_motion="reduce")
    found = Person(context.new_page(), served.url)
    found.open()
    yield found
    context.close()
    # A server that is gone is an error of the network, which browsers report by themselves.
    assert [text for text in found.errors if "Failed to load resource" not in text] == []
    assert [address for address in found.addresses if not address.startswith(served.url)] == []


def _set(person: Person, **values: Any) -> None:
    person.press("Settings and tools")
    for label, value in values.items():
        person.page.get_by_label(label.replace("_", " ")).fill(str(value))
    person.page.keyboard.press("Escape")


def _begin_endless_answer(person: Person) -> None:
    def lengthen(route: Route) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, **_ENDLESS}))

    person.page.route("**/v1/chat/completions", lengthen)
    person.type("Go on and on.")
    person.until("document.querySelector('.answer > .markdown')?.textContent.length > 20")
    person.page.unroute("**/v1/chat/completions")


def test_answers_are_streamed_regenerated_edited_and_kept(visitor: Person) -> None:
    _set(visitor, Most_tokens=12, Seed=1)
    first = visitor.say("The king")
    assert first
    assert "cut at 12 tokens" in visitor.numbers
    assert "tok/s" in visitor.numbers
    visitor.press("Regenerate")
    visitor.wait()
    assert visitor.answers == [first]  # the same seed
    assert visitor.texts(".branches .count") == ["2/2"]
    visitor.press("Edit message", ".said")
    visitor.page.fill(".said textarea", "The queen")
    visitor.page.press(".said textarea", "Enter")
    visitor.wait()
    second = visitor.answers
    visitor.say("And then?")
    assert len(visitor.answers) == 2
    visitor.reload()
    assert visitor.said == ["The queen", "And then?"]
    assert visitor.answers[:1] == second
    visitor.press("Previous version", ".said")
    assert (visitor.said, visitor.answers) == (["The king"], [first])


def test_answer_is_stopped_and_the_server_answers_the_next(visitor: Person) -> None:
    _begin_endless_answer(visitor)
    visitor.press("Stop")
    visitor.wait()
    assert visitor.numbers.startswith("stopped")
    _set(visitor, Most_tokens=4)
    visitor.say("And now?")
    assert "cut at 4 tokens" in visitor.numbers


def test_message_longer_than_the_context_is_told(visitor: Person) -> None:
    visitor.say("word " * 4000)
    assert visitor.trouble.startswith("This message is too long for the model's context.")


def test_server_killed_while_it_answers_and_started_again_goes_on(
    visitor: Person, served: Served
) -> None:
    _begin_endless_answer(visitor)
    served.kill()
    visitor.wait()
    assert "connection to the server broke" in visitor.trouble
    came = visitor.answers[0]
    served.start()
    visitor.page.wait_for_selector("#dot.there")
    _set(visitor, Most_tokens=4)
    visitor.press("Try again")
    visitor.wait()
    assert "cut at 4 tokens" in visitor.numbers
    visitor.press("Previous version")
    assert visitor.answers == [came]
