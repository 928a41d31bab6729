"""The panel: what it takes, what it says of what it does not take, and for which conversations."""

from __future__ import annotations

from .fake_server import FakeServer
from .person import Person


def _set(person: Person, **values: str) -> None:
    """Fill fields by their labels, with "_" for a space."""
    person.press("Settings and tools")
    for label, value in values.items():
        person.page.get_by_label(label.replace("_", " ")).fill(value)


TYPED = {"Top p": "7", "Temperature": "warm", "Most tokens": "2.5", "Seed": "1e300"}


def test_numbers_that_cannot_be_used_stay_in_their_fields_and_are_told(
    person: Person, server: FakeServer
) -> None:
    _set(person, **{label.replace(" ", "_"): text for label, text in TYPED.items()})
    assert person.texts(".fields .wrong:not(:empty)") == [
        "Not used: must be a number from 0 to 2.",
        "Not used: must be a number from 0 to 1.",
        "Not used: must be a whole number from 1 on.",
        "Not used: must be a whole number from 0 on.",
    ]
    person.page.keyboard.press("Escape")
    assert "Top p “7” is not used" in person.texts("#signs")[0]
    person.say("Hello")
    assert not {"top_p", "temperature", "max_tokens", "seed"} & {*server.requests[0]}
    person.page.click("#signs")
    fields = {label: person.page.get_by_label(label).input_value() for label in TYPED}
    assert fields == TYPED
    person.press("Use the model's defaults")
    assert person.page.locator(".fields .wrong:not(:empty)").count() == 0


def test_most_tokens_are_those_of_the_server(person: Person, server: FakeServer) -> None:
    server.engine["max_tokens"] = 256
    person.reload()
    _set(person, Most_tokens="300")
    told = person.page.locator(".fields .wrong:not(:empty)").inner_text()
    assert told == "Not used: must be a whole number from 1 to 256."


def test_settings_that_are_not_the_usual_ones_show_below_the_message_box(person: Person) -> None:
    assert not person.page.locator("#signs").is_visible()
    _set(person, System_prompt="Answer briefly.", Temperature="0,7")
    person.page.get_by_label("Calculator").check()
    person.page.keyboard.press("Escape")
    assert person.texts("#signs") == ["System prompt · 1 tool · Temperature 0.7"]
    person.say("Hello")
    person.reload()
    assert person.texts("#signs") == ["System prompt · 1 tool · Temperature 0.7"]
    person.press("New conversation")
    assert not person.page.locator("#signs").is_visible()


def test_new_conversations_begin_with_settings_kept_for_them(
    person: Person, server: FakeServer
) -> None:
    _set(person, Temperature="0.7")
    assert "begin with the model's own settings" in person.page.locator("#settings").inner_text()
    person.press("Use for new conversations")
    assert "begin with these" in person.page.locator("#settings").inner_text()
    person.page.keyboard.press("Escape")
    person.say("Hello")
    person.press("New conversation")
    person.say("Hello")
    assert [request["temperature"] for request in server.requests] == [0.7, 0.7]
