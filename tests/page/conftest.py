"""A fake server and a browser for the chat page; without a browser these tests say "not run"."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .fake_server import FakeServer
from .person import Person

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Nothing but the page may use the network; containers have no user namespaces for a sandbox.
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
_FLAGS += ("--disable-component-update", "--disable-sync", "--no-first-run")
# A status that a test asks for; browsers report it as an error of their own.
_EXPECTED = "Failed to load resource"


# Playwright keeps an event loop in the main thread while it runs, which tests elsewhere that
# call asyncio.run cannot bear: so it ends with each file.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    why = "not run: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("not run: there is no Chromium here; on Debian apt-get install chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=program, args=list(_FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeServer]:
    """One for all tests: each start and stop would take a while."""
    running = FakeServer()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def server(running_server: FakeServer) -> FakeServer:
    """A server that answers what a test scripts."""
    running_server.forget()
    return running_server


def _make_person(browser: Browser, url: str, **options: Any) -> Person:
    options = {"reduced_motion": "reduce", "color_scheme": "light", **options}
    return Person(browser.new_context(**options).new_page(), url)


def _check(person: Person) -> None:
    """Nobody shall have seen an error, or left the origin."""
    assert [text for text in person.errors if _EXPECTED not in text] == []
    assert [address for address in person.addresses if not address.startswith(person.url)] == []


@pytest.fixture
def make_person(browser: Browser, server: FakeServer) -> Iterator[Any]:
    """People with a browser profile each, for what a profile must begin with."""
    people: list[Person] = []

    def make(**options: Any) -> Person:
        people.append(_make_person(browser, server.url, **options))
        return people[-1]

    yield make
    for person in people:
        person.page.context.close()
        _check(person)


@pytest.fixture(scope="module")
def anybody(browser: Browser, running_server: FakeServer) -> Person:
    """One for many tests: a profile for each takes longer than most of them."""
    return _make_person(browser, running_server.url)


@pytest.fixture
def person(anybody: Person, server: FakeServer) -> Iterator[Person]:
    """Somebody who opens the page for the first time."""
    anybody.forget()
    anybody.open()
    yield anybody
    _check(anybody)


@pytest.fixture
def neighbour(person: Person) -> Iterator[Person]:
    """A second tab of the same browser profile, which shows what the first one shows."""
    second = Person(person.page.context.new_page(), person.url)
    second.page.goto(person.page.url)
    second.page.wait_for_selector("#dot.there")
    yield second
    second.page.close()
    _check(second)
