"""What goes wrong: one line, nothing lost, and a way to go on."""

from __future__ import annotations

from typing import Any

import pytest

from .fake_server import FakeServer, Reply, say
from .person import Person


def test_full_queue_offers_to_try_again(person: Person, server: FakeServer) -> None:
    full = {"message": "the queue is full", "code": "queue_full"}
    server.replies.append(Reply(status=429, error=full, headers={"Retry-After": "3"}))
    person.say("Hello")
    assert person.trouble == "The server is busy: too many requests wait. Try again in 3 s."
    server.replies.append(say("Here I am."))
    person.press("Try again")
    person.see("Here I am.")
    person.wait()
    # Nothing had come of the first answer, so it is no version.
    assert person.texts(".branches") == []
    assert person.said == ["Hello"]


def test_error_in_the_stream_keeps_what_came(person: Person, server: FakeServer) -> None:
    broken = {"message": "the device ran out of memory", "code": "internal_error"}
    server.replies.append(say("The beginning", error=broken))
    person.say("Hello")
    assert person.answers == ["The beginning"]
    assert person.trouble == "The device ran out of memory"
    person.press("Try again")
    person.see("Yes.")
    person.wait()
    assert person.texts(".branches .count") == ["2/2"]


def test_context_overflow_says_what_to_do(person: Person, server: FakeServer) -> None:
    error = {"message": "40000 tokens", "code": "context_length_exceeded"}
    server.replies.append(Reply(status=400, error=error))
    person.say("A long story")
    assert person.trouble.startswith("This message is too long for the model's context.")
    assert person.buttons("Try again").count() == 0
    assert person.said == ["A long story"]
    server.replies.append(Reply(status=400, error=error))
    person.say("And more")
    assert "no longer fits the model's context" in person.trouble


def test_request_refused_shows_the_servers_line(person: Person, server: FakeServer) -> None:
    server.replies.append(Reply(status=400, error={"message": "seed: too large"}))
    person.say("Hello")
    assert person.trouble == "Seed: too large"


REFUSALS = """async (errors) => {
  const { tellRefusal } = await import("./refusals.js");
  return errors.map(([message, param]) => tellRefusal({ message, param }));
}"""


def test_refusals_are_told_in_the_words_of_the_settings(person: Person) -> None:
    name = "tools.0.function.name"
    told = {
        ("temperature: Input should be less than or equal to 2", "temperature"): (
            "Temperature must be at most 2. Change it in the settings."
        ),
        ("max_tokens: Input should be a valid integer", "max_tokens"): (
            "Most tokens must be a whole number. Change it in the settings."
        ),
        ("40 tokens are asked for, and this server gives 8 at most", "max_tokens"): (
            "Most tokens: 40 tokens are asked for, and this server gives 8 at most. "
            "Change it in the settings."
        ),
        ("tool 0 ('a'): parameters are wrong", "messages"): (
            "Tool 1 ('a'): parameters are wrong. Correct it in the settings."
        ),
        (f"{name}: String should match pattern '^x$'", name): (
            "Tool 1: name must have 1 to 64 letters, digits, “_” and “-”. "
            "Correct it in the settings."
        ),
    }
    assert person.run(REFUSALS, [list(given) for given in told]) == list(told.values())


def test_another_model_by_now_is_asked_when_trying_again(
    person: Person, server: FakeServer
) -> None:
    server.engine["model"] = "LFM2-350M"
    gone = {"message": "there is no model", "code": "model_not_found", "param": "model"}
    server.replies.append(Reply(status=404, error=gone))
    person.say("Hello")
    person.until("document.querySelector('#model').textContent === 'LFM2-350M'")
    person.press("Try again")
    person.see("Yes.")
    assert server.requests[-1]["model"] == "LFM2-350M"


@pytest.mark.parametrize(
    ("most", "prompt_tokens", "told"),
    [
        (None, 32_738, "cut: the context is full"),  # and 30 of the answer: all of 32,768
        ("30", 1200, "cut at 30 tokens"),
        ("64", 32_738, "cut: the context is full"),
    ],
)
def test_answer_cut_says_by_what(
    person: Person, server: FakeServer, most: str | None, prompt_tokens: int, told: str
) -> None:
    if most:
        person.press("Settings and tools")
        person.page.get_by_label("Most tokens").fill(most)
        person.page.keyboard.press("Escape")
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 30}
    server.replies.append(say("The beginning", finish="length", usage=usage))
    person.say("Go on")
    assert person.numbers.startswith(told)


def test_server_gone_and_back_loses_nothing(person: Person, server: FakeServer) -> None:
    server.stop()
    person.say("Are you there?")
    assert person.trouble.startswith("The server does not answer.")
    assert person.page.locator("#dot.gone").count() == 1
    server.start()
    person.page.wait_for_selector("#dot.there")  # the page asks by itself
    person.press("Try again")
    person.see("Yes.")
    assert person.said == ["Are you there?"]


def test_key_is_asked_for_and_kept_for_the_tab(make_person: Any, server: FakeServer) -> None:
    server.key = "secret"
    person: Person = make_person()
    person.page.goto(person.url)
    person.page.get_by_label("API key", exact=True).fill("wrong")
    person.press("Use this key")
    person.page.locator("#key[open]").wait_for()
    person.page.get_by_label("API key", exact=True).fill("secret")
    person.press("Use this key")
    person.page.wait_for_selector("#dot.there")
    assert person.say("Hello") == "Yes."
    person.reload()  # asks for no key again
    assert person.run("JSON.stringify(localStorage)").count("secret") == 0


def test_key_asked_for_while_chatting_goes_on_with_the_message(
    person: Person, server: FakeServer
) -> None:
    server.key = "secret"
    person.type("Hello")
    person.page.get_by_label("API key", exact=True).fill("secret")
    person.press("Use this key")
    person.see("Yes.")
    assert person.said == ["Hello"]


FULL = "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }"
BLOCKED = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } })"


@pytest.mark.parametrize(
    ("script", "told"), [(FULL, "storage is full"), (BLOCKED, "keeps no data for this page")]
)
def test_storage_that_cannot_be_used_is_told_and_chat_goes_on(
    make_person: Any, script: str, told: str
) -> None:
    person: Person = make_person()
    person.page.add_init_script(script)
    person.open()
    assert person.say("Hello") == "Yes."
    assert told in person.page.locator(".notice").inner_text()


def test_stored_rubbish_is_passed_over(person: Person) -> None:
    person.say("Real question")
    person.run("""() => {
      localStorage.setItem("lfm2.conversation.a", "{ not JSON");
      localStorage.setItem("lfm2.conversation.b", '{"version": 1, "id": "b", "nodes": 7}');
      const root = { id: "root", children: ["x"], chosen: "x" };
      const self = { children: ["x"], chosen: "x" };
      const x = { id: "x", parent: "root", role: "user", content: "", ...self };
      const loop = { version: 1, id: "c", title: "c", settings: {}, nodes: { root, x } };
      localStorage.setItem("lfm2.conversation.c", JSON.stringify(loop));
    }""")
    person.reload()
    assert person.texts("#conversations .title") == ["Real question"]
