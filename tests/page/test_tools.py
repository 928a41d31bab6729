"""Tools: the user's own, whose results are typed, and those that run in the page."""

from __future__ import annotations

import json

import pytest

from .fake_server import FakeServer, call, say
from .person import Person

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def _describe_tools(person: Person, text: str, *built_in: str) -> None:
    person.press("Settings and tools")
    person.page.get_by_label("Your tools, as JSON").fill(text)
    for label in built_in:
        person.page.get_by_label(label).check()
    person.page.keyboard.press("Escape")


def test_call_is_a_card_and_the_typed_result_goes_back(person: Person, server: FakeServer) -> None:
    _describe_tools(person, json.dumps(WEATHER))
    server.replies.append(call(("get_weather", '{"city": "Paris"}'), text="One moment."))
    person.say("Weather?")
    assert server.requests[0]["tools"] == [{"type": "function", "function": WEATHER}]
    assert person.texts(".card .name") == ["get_weather"]
    assert person.texts(".card pre") == ['{\n  "city": "Paris"\n}']
    server.replies.append(say("It is sunny."))
    person.page.fill(".card textarea", "sunny, 21 degrees")
    person.press("Send result")
    person.see("It is sunny.")
    person.wait()
    asked, result = server.requests[1]["messages"][-2:]
    assert asked["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    wanted = {"role": "tool", "tool_call_id": "call_get_weather", "content": "sunny, 21 degrees"}
    assert result == wanted
    person.reload()
    assert person.texts(".card .result pre") == ["sunny, 21 degrees"]


def test_changed_result_is_a_version_beside_the_first(person: Person, server: FakeServer) -> None:
    _describe_tools(person, json.dumps(WEATHER))
    server.replies.extend([call(("get_weather", "{}")), say("Sunny."), say("Rainy.")])
    person.say("Weather?")
    person.page.fill(".card textarea", "sun")
    person.press("Send result")
    person.see("Sunny.")
    person.wait()
    person.press("Change results")
    person.page.fill(".card textarea", "rain")
    person.press("Send result")
    person.see("Rainy.")
    person.wait()
    assert person.texts(".card .count") == ["2/2"]
    person.press("Previous version", ".card")
    assert person.answers[-1] == "Sunny."


def test_page_tool_runs_by_itself(person: Person, server: FakeServer) -> None:
    _describe_tools(person, "", "Calculator")
    server.replies.append(call(("calculate", '{"expression": "12 * (3 + 4)"}')))
    server.replies.append(say("It is 84."))
    person.say("12 * (3 + 4)?")
    person.see("It is 84.")
    assert json.loads(server.requests[1]["messages"][-1]["content"]) == {"value": 84}


def test_two_calls_wait_for_the_users_result_with_the_pages_own_filled_in(
    person: Person, server: FakeServer
) -> None:
    _describe_tools(person, json.dumps([WEATHER]), "Current time")
    calls = (("get_current_time", '{"timezone": "Asia/Tokyo"}'), ("get_weather", "{}"))
    server.replies.append(call(*calls))
    person.say("Time and weather?")
    assert len(server.requests) == 1
    boxes = person.page.locator(".card textarea")
    assert json.loads(boxes.nth(0).input_value())["timezone"] == "Asia/Tokyo"
    boxes.nth(1).fill("fog")
    server.replies.append(say("Foggy."))
    person.press("Send results")
    person.see("Foggy.")
    assert [message["role"] for message in server.requests[1]["messages"][-2:]] == ["tool"] * 2


def test_page_tool_called_for_ever_is_ended(person: Person, server: FakeServer) -> None:
    _describe_tools(person, "", "Calculator")
    for _ in range(12):
        server.replies.append(call(("calculate", '{"expression": "1"}')))
    person.type("Loop")
    person.buttons("Send result").wait_for()
    assert len(server.requests) == 7  # the first, and six rounds by themselves


def test_message_instead_of_a_result_still_gives_each_call_one(
    person: Person, server: FakeServer
) -> None:
    server.replies.append(call(("get_weather", '{"city": "Par')))  # cut
    person.say("Weather?")
    person.say("Never mind.")
    asked, result = server.requests[1]["messages"][1:3]
    assert asked["tool_calls"][0]["function"]["arguments"] == "{}"
    assert result["content"] == "No result was given."


@pytest.mark.parametrize(
    ("text", "told"), [("[{", "This is not JSON"), ('[{"a": 1}]', 'Tool 1 has no "name".')]
)
def test_tools_that_cannot_be_read_are_told(person: Person, text: str, told: str) -> None:
    person.press("Settings and tools")
    person.page.get_by_label("Your tools, as JSON").fill(text)
    assert told in person.page.locator(".wrong").inner_text()


def test_model_without_tools_is_told_and_gets_none(person: Person, server: FakeServer) -> None:
    _describe_tools(person, json.dumps(WEATHER))
    server.engine["supports_tools"] = False
    person.reload()
    person.press("Settings and tools")
    assert "takes no tools" in person.page.locator("#settings").inner_text()
    person.page.keyboard.press("Escape")
    person.say("Hello")
    assert "tools" not in server.requests[0]


CALCULATE = """async (texts) => {
  const { calculate } = await import("./calculator.js");
  return texts.map((text) => {
    try { return calculate(text); } catch (error) { return error.message; }
  });
}"""


def test_calculator_knows_precedence_and_refuses_what_is_no_arithmetic(person: Person) -> None:
    right = {"2 + 3 * 4": 14, "-2 ^ 2": -4, "2 ^ 3 ^ 2": 512, "10 % 4": 2, "max(1, 7, 3)": 7}
    assert person.run(CALCULATE, list(right)) == list(right.values())
    wrong = ["alert(1)", "constructor", "1 / 0", "2 2", "(1", "", "(" * 501, "a=1"]
    assert all(isinstance(told, str) for told in person.run(CALCULATE, wrong))
