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
# call asyncio.run cannot bear: so it ends with this folder.
@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
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


@pytest.fixture
def make_person(browser: Browser, server: FakeServer) -> Iterator[Any]:
    """People with a browser profile each; at the end, none saw an error or left the origin."""
    people: list[Person] = []

    def make(**options: Any) -> Person:
        options = {"reduced_motion": "reduce", "color_scheme": "light", **options}
        context = browser.new_context(accept_downloads=True, **options)
        people.append(Person(context.new_page(), server.url))
        return people[-1]

    yield make
    for person in people:
        person.page.context.close()
    errors = [text for person in people for text in person.errors if _EXPECTED not in text]
    assert not errors
    addresses = {address for person in people for address in person.addresses}
    assert not {address for address in addresses if not address.startswith(server.url)}


@pytest.fixture
def person(make_person: Any) -> Person:
    """Somebody who has opened the page."""
    someone: Person = make_person()
    someone.open()
    return someone
