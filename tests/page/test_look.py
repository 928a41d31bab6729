"""Light and dark, narrow screens, the keyboard, and what is heard."""

from __future__ import annotations

from typing import Any

import pytest

from .fake_server import FakeServer, say
from .person import Person

WIDE = """A table | with | many | columns
---|---|---|---
averyveryveryverylongword | averyveryveryverylongword | averyveryveryverylongword | end

```
a line of code that is by far too long for a narrow screen, and then some more words of it
```
averyveryveryveryveryveryveryveryveryveryveryveryveryveryveryverylongword
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(252, 251, 249)", "rgb(22, 24, 26)"


@pytest.mark.parametrize(("scheme", "colour"), [("light", LIGHT), ("dark", DARK)])
def test_colours_follow_the_system(make_person: Any, scheme: str, colour: str) -> None:
    person: Person = make_person(color_scheme=scheme)
    person.open()
    assert person.run(BACKGROUND) == colour


def test_theme_chosen_is_remembered(person: Person) -> None:
    for name in ("as the system", "light"):
        person.press(f"Theme: {name}")
    assert person.run(BACKGROUND) == DARK
    person.reload()
    assert person.run(BACKGROUND) == DARK
    person.press("Theme: dark")
    assert person.run(BACKGROUND) == LIGHT


def test_theme_chosen_reaches_other_tabs(person: Person, neighbour: Person) -> None:
    for name in ("as the system", "light"):
        person.press(f"Theme: {name}")
    neighbour.buttons("Theme: dark").wait_for()
    assert neighbour.run(BACKGROUND) == DARK


def test_narrow_screen_fits_and_opens_the_sidebar_over_it(
    make_person: Any, server: FakeServer
) -> None:
    person: Person = make_person(viewport={"width": 360, "height": 640})
    person.open()
    server.replies.append(say(WIDE))
    person.say("averyveryveryveryveryveryveryveryveryverylongword")
    widths = "[document.documentElement, document.querySelector('#scroller')]"
    assert person.run(f"{widths}.every((one) => one.scrollWidth <= one.clientWidth)")
    assert not person.page.locator("#sidebar").is_visible()
    person.press("Conversations")
    assert person.page.locator("#sidebar").is_visible()
    assert person.run("document.querySelector('#main').inert")
    person.page.keyboard.press("Escape")
    assert not person.page.locator("#sidebar").is_visible()
    person.press("Conversations")
    person.press("Close the conversations")
    assert not person.page.locator("#sidebar").is_visible()
    assert person.focused == "Conversations"
    person.press("Settings and tools")
    assert person.run("document.querySelector('#settings').scrollWidth <= 360")


def test_everything_is_reached_by_tab_and_shows_it(person: Person) -> None:
    person.say("Hello")
    person.page.locator("body").click(position={"x": 300, "y": 300})
    names: list[str] = []
    for _ in range(24):
        person.page.keyboard.press("Tab")
        name, ring = person.run("""() => {
          const one = document.activeElement;
          const bare = one.matches("body, #scroller, #input");
          return [one.ariaLabel || one.textContent.trim().slice(0, 30), bare || getComputedStyle(one).outlineStyle];
        }""")  # noqa: E501
        assert ring in (True, "solid"), name
        names.append(name)
    for wanted in ("New conversation", "Rename Hello", "Settings and tools", "Edit message"):
        assert wanted in names
    assert {"Copy answer", "Regenerate", "Message"} <= set(names)


def test_focus_stays_where_one_works(person: Person) -> None:
    for text in ("One", "Two"):
        person.press("New conversation")
        person.say(text)
    keys = person.page.keyboard
    person.buttons("Regenerate").focus()
    keys.press("Enter")
    person.wait()
    assert "answer" in person.focused
    keys.press("Tab")
    assert person.focused == "Copy answer"
    person.buttons("Rename Two").focus()
    keys.press("Enter")
    keys.type("Three")
    keys.press("Enter")
    assert person.focused == "Three"
    person.buttons("Delete Three").focus()
    keys.press("Enter")
    assert person.focused == "One"
    person.buttons("Delete One").focus()
    keys.press("Enter")
    assert person.focused == "New conversation"


def test_title_has_the_room_until_the_mouse_comes(person: Person) -> None:
    person.say("Hello")
    person.page.mouse.move(600, 300)
    widths = "(one => [one.querySelector('.title').offsetWidth, one.offsetWidth])"
    title, item = person.run(f"{widths}(document.querySelector('#conversations li.current'))")
    assert title == item
    person.page.hover("#conversations li")
    assert person.buttons("Delete Hello").is_visible()


def test_answer_is_announced_by_sentences(person: Person, server: FakeServer) -> None:
    server.replies.append(say("First sentence. Second one. And the rest"))
    person.say("Hello")
    log = person.page.locator("#announcer")
    assert log.get_attribute("aria-live") == "polite"
    heard = log.inner_text()
    for part in ("First sentence.", "Second one.", "And the rest", "End of the answer."):
        assert heard.count(part) == 1


def test_empty_page_says_what_it_is_and_examples_send(person: Person, server: FakeServer) -> None:
    assert "You talk to LFM2-1.2B-Instruct." in person.page.locator(".welcome").inner_text()
    examples = person.page.locator(".examples button")
    assert examples.count() == 3
    text = examples.first.inner_text()
    examples.first.click()
    person.wait()
    assert person.said == [text]


def test_newest_text_stays_in_sight_until_somebody_scrolls_up(
    person: Person, server: FakeServer
) -> None:
    server.replies.append(say("line\n\n" * 80))
    person.say("Long")
    rest = (
        "(s => s.scrollHeight - s.scrollTop - s.clientHeight)(document.querySelector('#scroller'))"
    )
    person.until(f"{rest} < 5")
    person.run("document.querySelector('#scroller').scrollTop = 100")
    person.buttons("Scroll to the newest message").wait_for()
    server.replies.append(say("more\n\n" * 20))
    person.say("On")
    person.press("Scroll to the newest message")
    person.until(f"{rest} < 5")
