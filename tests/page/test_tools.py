"""Tools: the user's own, whose results are typed, and those that run in the page."""

from __future__ import annotations

import json

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
    server.replies.append(call(("get_weather", '{"city": "Par')))  # of a careless server
    person.say("Weather?")
    assert person.texts("#hint") == ["Calls wait for results; a message goes on without them"]
    person.say("Never mind.")
    assert person.page.locator(".card textarea").count() == 0
    assert "the conversation went on without one" in person.texts(".card")[0]
    asked, result = server.requests[1]["messages"][1:3]
    assert asked["tool_calls"][0]["function"]["arguments"] == "{}"
    assert result["content"] == "No result was given."


def test_call_cut_by_the_most_tokens_asks_for_no_result(person: Person, server: FakeServer) -> None:
    _describe_tools(person, json.dumps(WEATHER), "Calculator")
    calls = (("calculate", '{"expression": "1"}'), ("get_weather", '{"city": "Par'))
    server.replies.append(call(*calls, finish="length"))
    person.say("Weather?")
    assert len(server.requests) == 1
    assert person.page.locator(".card textarea").count() == 0
    assert person.texts(".card .result") == [
        "Cut at the most tokens before its end, so it cannot be answered. "
        "Allow more tokens, then regenerate."
    ]
    person.say("Never mind.")  # half a call is none
    asked = server.requests[1]["messages"][1]
    assert [one["function"]["name"] for one in asked["tool_calls"]] == ["calculate"]


def test_one_of_two_calls_may_have_no_result(person: Person, server: FakeServer) -> None:
    server.replies.append(call(("first", "{}"), ("second", "{}")))
    person.say("Both?")
    person.page.locator(".card textarea").nth(0).fill("done")
    person.page.get_by_label("No result").nth(1).check()
    server.replies.append(say("Only one."))
    person.press("Send results")
    person.see("Only one.")
    results = [message["content"] for message in server.requests[1]["messages"][-2:]]
    assert results == ["done", "No result was given."]
    assert person.texts(".card .result .small") == ["Result", "No result"]
    person.reload()
    assert person.texts(".card .result pre") == ["done"]


FAULTS = """async (texts) => {
  const { readTools } = await import("./tools.js");
  return texts.map((text) => readTools(text, ["calculate"]).error);
}"""


def test_tools_are_refused_by_the_rules_of_the_server(person: Person) -> None:
    told = {
        '[{"name": "a-1_B"}, {"name": "b", "parameters": {"type": "object"}}]': "",
        '[{"a": 1}]': 'Tool 1 has no "name".',
        "[null]": 'Tool 1 has no "name".',
        '[{"name": "a b"}]': 'Tool 1 has the name "a b": 1 to 64 letters, digits, "_" and "-" '
        "are allowed.",
        '[{"name": "a"}, {"name": "a"}]': 'Tool 2 has the name "a", as another tool has.',
        '{"name": "calculate"}': 'Tool 1 has the name "calculate", as another tool has.',
        '{"name": "a", "parameters": {"type": "array"}}': 'Tool 1 ("a"): "parameters" must be a '
        'schema with "type": "object".',
        '{"name": "a", "description": 7}': 'Tool 1 ("a"): "description" must be a text.',
    }
    assert person.run(FAULTS, list(told)) == list(told.values())


def test_tools_that_cannot_be_used_are_told_in_the_panel_and_before_sending(
    person: Person,
) -> None:
    _describe_tools(person, "[{", "Calculator")
    person.press("Your tools are not sent: they have a mistake")
    assert "This is not JSON" in person.page.locator("#settings p.wrong").inner_text()
    person.page.get_by_label("Your tools, as JSON").fill("")
    person.page.keyboard.press("Escape")
    assert person.texts("#signs") == ["1 tool"]


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
