"""What somebody does with the page, and sees on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

# Far more than anything here takes, on a busy machine, too.
_TIMEOUT_MS = 10_000


class Person:
    """A page in a browser, and what happened on it.

    Args:
        page: an empty one.
        url: the server's.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.addresses: list[str] = []
        page.set_default_timeout(_TIMEOUT_MS)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def _note(self, address: str) -> None:
        if not address.startswith("blob:"):  # a download made in the page
            self.addresses.append(address)

    def forget(self) -> None:
        """Be as new, for another test."""
        self.page.goto(f"{self.url}icon.svg")  # of the same origin, and without scripts
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        self.errors.clear()
        self.addresses.clear()

    def open(self) -> None:
        """Go to the page and wait until it knows the model."""
        self.page.goto(self.url)
        self.page.wait_for_selector("#dot.there")

    def reload(self) -> None:
        """Load the page again, where it is."""
        self.page.reload()
        self.page.wait_for_selector("#dot.there")

    def type(self, text: str) -> None:
        """Write a message and press Enter."""
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def say(self, text: str) -> str:
        """Send a message and wait for the whole answer; the text of the last one."""
        self.type(text)
        self.wait()
        return self.answers[-1]

    def wait(self) -> None:
        """Wait until nothing is being answered."""
        self.page.wait_for_selector('#send[data-running="false"]')
        # Tools of the page begin a second answer at once.
        self.page.locator(".answer.running").first.wait_for(state="detached")

    def see(self, text: str) -> None:
        """Wait until a message shows this text."""
        self.page.locator("#thread").get_by_text(text).first.wait_for()

    def press(self, name: str, within: str = "") -> None:
        """Click the last visible button of this name."""
        self.buttons(name, within).last.click()

    def manage(self, action: str, title: str) -> None:
        """Click what stands beside a conversation's title once the mouse is there."""
        self.page.locator("#conversations li", has_text=title).hover()
        self.press(f"{action} {title}", "#conversations")

    @property
    def focused(self) -> str:
        """What the element with the focus is called, or its class."""
        name: str = self.run(
            "(one => one.ariaLabel || (one.matches('button') && one.textContent) || one.className)"
            "(document.activeElement)"
        )
        return name

    def buttons(self, name: str, within: str = "") -> Locator:
        """Buttons by what a screen reader calls them."""
        place: Any = self.page.locator(within) if within else self.page
        found: Locator = place.get_by_role("button", name=name, exact=True)
        return found

    def texts(self, selector: str) -> list[str]:
        """What elements show."""
        return self.page.locator(selector).all_inner_texts()

    @property
    def answers(self) -> list[str]:
        """Texts of the answers that are shown."""
        return self.texts(".answer > .markdown")

    @property
    def said(self) -> list[str]:
        """Texts of the user's messages that are shown."""
        return self.texts(".said .text")

    @property
    def numbers(self) -> str:
        """Speed and the like, below the last answer."""
        return self.texts(".answer .numbers")[-1]

    @property
    def trouble(self) -> str:
        """What went wrong with the last answer."""
        return self.page.locator(".trouble:visible p").last.inner_text()

    def until(self, script: str) -> None:
        """Wait until an expression is true.

        Not by `wait_for_function`: that evaluates texts in the page, whose policy forbids it.
        """
        end = time.monotonic() + _TIMEOUT_MS / 1000
        while not self.page.evaluate(script):
            assert time.monotonic() < end, f"still false: {script}"
            time.sleep(0.01)

    def run(self, script: str, *arguments: Any) -> Any:
        """Evaluate JavaScript in the page."""
        return self.page.evaluate(script, *arguments)
