"""Sending, stopping, regenerating, editing, and what is kept."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from .fake_server import FakeServer, Reply, say
from .person import Person


def test_message_sent_is_answered_with_speed_and_context(
    person: Person, server: FakeServer
) -> None:
    server.replies.append(say("The sky is **blue**."))
    assert person.say("Why?") == "The sky is blue."
    assert person.texts(".answer strong") == ["blue"]
    request = server.requests[0]
    assert request["messages"] == [{"role": "user", "content": "Why?"}]
    assert request["stream_options"] == {"include_usage": True}
    assert "temperature" not in request
    assert "tools" not in request
    assert person.numbers.startswith("34.3 tok/s · first token ")
    assert person.numbers.endswith(" · 96 tokens reused")
    assert person.texts("#used") == ["1,230 of 32,768 tokens"]
    assert person.texts("#model") == ["LFM2-1.2B-Instruct"]
    assert person.texts("#device") == ["CPU · int4"]


def test_answer_under_way_is_shown_before_its_end(person: Person, server: FakeServer) -> None:
    held = threading.Event()
    server.replies.append(say("First words", hold=held))
    person.type("Go on")
    person.see("First words")
    assert person.page.locator(".answer.running").count() == 1
    held.set()
    person.wait()
    assert person.page.locator(".answer.running").count() == 0


def test_stop_keeps_what_came_and_tells_the_server(person: Person, server: FakeServer) -> None:
    server.replies.append(say("Half an answer", hold=threading.Event()))
    person.type("Tell me all")
    person.see("Half an answer")
    person.page.fill("#input", "typed meanwhile")
    person.page.keyboard.press("Escape")
    person.wait()
    assert person.answers == ["Half an answer"]
    assert person.numbers.startswith("stopped")
    assert person.page.input_value("#input") == "typed meanwhile"
    assert server.disconnected.wait(5)


def test_shift_enter_begins_a_line_and_enter_sends(person: Person, server: FakeServer) -> None:
    person.page.locator("#input").press_sequentially("one")
    person.page.keyboard.press("Shift+Enter")
    person.page.keyboard.type("two")
    person.page.keyboard.press("Enter")
    person.wait()
    assert person.said == ["one\ntwo"]
    assert server.requests[0]["messages"][0]["content"] == "one\ntwo"


def test_regenerate_adds_a_version_and_switching_goes_back(
    person: Person, server: FakeServer
) -> None:
    server.replies.extend([say("First."), say("Second."), say("Third.")])
    person.say("Question")
    person.press("Regenerate")
    person.wait()
    assert person.answers == ["Second."]
    assert person.texts(".branches .count") == ["2/2"]
    person.press("Previous version")
    assert person.answers == ["First."]
    # The conversation goes on from the version that is shown.
    person.say("And?")
    sent = [message["content"] for message in server.requests[-1]["messages"]]
    assert sent == ["Question", "First.", "And?"]
    person.press("Next version")
    assert person.answers == ["Second."]
    person.press("Previous version")
    assert person.answers == ["First.", "Third."]


def test_switching_by_keyboard_keeps_the_focus(person: Person, server: FakeServer) -> None:
    for _ in range(2):
        server.replies.append(say("Text."))
    person.say("Question")
    person.press("Regenerate")
    person.wait()
    person.buttons("Previous version").focus()
    person.page.keyboard.press("Enter")
    # The first version has none before it, so the other button takes the focus.
    assert person.run("document.activeElement.getAttribute('aria-label')") == "Next version"


def test_edit_adds_a_version_beside_what_was_said(person: Person, server: FakeServer) -> None:
    server.replies.extend([say("About tea."), say("About coffee.")])
    person.say("Tea?")
    person.press("Edit message", ".said")
    person.page.fill(".said textarea", "Coffee?")
    person.page.press(".said textarea", "Enter")
    person.see("About coffee.")
    person.wait()
    assert (person.said, person.answers) == (["Coffee?"], ["About coffee."])
    assert len(server.requests[-1]["messages"]) == 1
    person.press("Previous version", ".said")
    assert (person.said, person.answers) == (["Tea?"], ["About tea."])


def test_edit_left_by_escape_changes_nothing(person: Person, server: FakeServer) -> None:
    person.say("Tea?")
    person.press("Edit message", ".said")
    person.page.fill(".said textarea", "Coffee?")
    person.page.keyboard.press("Escape")
    assert person.said == ["Tea?"]
    assert len(server.requests) == 1


def test_reload_restores_conversation_branch_and_draft(person: Person, server: FakeServer) -> None:
    server.replies.extend([say("First."), say("Second.")])
    person.say("Question")
    person.press("Regenerate")
    person.wait()
    person.press("Previous version")
    person.page.fill("#input", "not sent yet")
    person.reload()
    assert (person.said, person.answers) == (["Question"], ["First."])
    assert person.texts(".branches .count") == ["1/2"]
    assert person.page.input_value("#input") == "not sent yet"


def test_reload_while_answering_keeps_what_came(person: Person, server: FakeServer) -> None:
    server.replies.append(say("Half an answer", hold=threading.Event()))
    person.type("Tell me all")
    person.see("Half an answer")
    person.reload()
    assert person.answers == ["Half an answer"]
    assert person.numbers.startswith("stopped")


def test_conversations_are_listed_renamed_deleted_and_taken_back(
    person: Person, server: FakeServer
) -> None:
    person.say("First question")
    person.press("New conversation")
    assert person.said == []
    person.say("Second question")
    assert person.texts("#conversations .title") == ["Second question", "First question"]
    person.manage("Rename", "Second question")
    person.page.keyboard.type("Better name")
    person.page.keyboard.press("Enter")
    assert "Better name" in person.texts("#conversations .title")
    person.manage("Delete", "Better name")
    assert person.texts("#conversations .title") == ["First question"]
    person.press("Undo")
    assert person.said == ["Second question"]
    person.reload()
    assert len(person.texts("#conversations .title")) == 2


def test_conversation_deleted_while_answered_stays_deleted(
    person: Person, server: FakeServer
) -> None:
    server.replies.append(say("Half an answer", hold=threading.Event()))
    person.type("Tell me all")
    person.see("Half an answer")
    person.manage("Delete", "Tell me all")
    assert server.disconnected.wait(5)
    person.reload()
    assert person.texts("#conversations .title") == []


def test_conversation_deleted_while_answered_is_taken_back_with_what_came(
    person: Person, server: FakeServer
) -> None:
    server.replies.append(say("Half an answer", hold=threading.Event()))
    person.type("Tell me all")
    person.see("Half an answer")
    person.manage("Delete", "Tell me all")
    person.press("Undo")
    person.wait()
    assert person.answers == ["Half an answer"]
    person.reload()
    assert person.answers == ["Half an answer"]


def test_undo_is_offered_until_another_conversation_is_opened(person: Person) -> None:
    person.say("First question")
    person.press("New conversation")
    person.say("Second question")
    person.manage("Delete", "Second question")
    assert person.buttons("Undo").count() == 1
    person.page.locator("#conversations .title").click()
    assert person.buttons("Undo").count() == 0


def test_export_holds_every_version(person: Person, server: FakeServer, tmp_path: Path) -> None:
    server.replies.extend([say("First."), say("Second.")])
    person.say("Question")
    person.press("Regenerate")
    person.wait()
    with person.page.expect_download() as begun:
        person.page.hover("#conversations li")
        person.press("Export Question as JSON")
    begun.value.save_as(tmp_path / "export.json")
    assert begun.value.suggested_filename == "Question.json"
    nodes = json.loads((tmp_path / "export.json").read_text())["nodes"].values()
    contents = {node["content"] for node in nodes if "content" in node}
    assert contents == {"Question", "First.", "Second."}


def test_answer_goes_on_while_another_conversation_is_shown(
    person: Person, server: FakeServer
) -> None:
    held = threading.Event()
    server.replies.append(say("A slow answer", hold=held))
    person.type("Slow question")
    person.see("A slow answer")
    person.press("New conversation")
    assert person.say("Quick question") == "Yes."
    held.set()
    person.page.locator("#conversations .title", has_text="Slow question").click()
    person.wait()
    assert person.answers == ["A slow answer"]
    assert person.numbers.startswith("34.3")


def test_settings_go_with_the_request_and_outlive_a_reload(
    person: Person, server: FakeServer
) -> None:
    person.press("Settings and tools")
    person.page.get_by_label("System prompt").fill("Answer briefly.")
    for label, value in (("Temperature", "0.7"), ("Most tokens", "64"), ("Seed", "5")):
        person.page.get_by_label(label).fill(value)
    person.page.keyboard.press("Escape")
    person.reload()
    person.say("Hello")
    request = server.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Answer briefly."}
    asked = {name: request.get(name) for name in ("temperature", "max_tokens", "seed", "top_p")}
    assert asked == {"temperature": 0.7, "max_tokens": 64, "seed": 5, "top_p": None}
    # Another conversation has its own.
    person.press("New conversation")
    person.say("Hello")
    assert "seed" not in server.requests[1]


def test_reasoning_is_collapsed_and_told_while_it_comes(person: Person, server: FakeServer) -> None:
    held = threading.Event()
    thoughts: list[dict[str, Any]] = [{"reasoning_content": "Let me "}]
    thoughts += [{"reasoning_content": "count."}]
    server.replies.append(Reply(thoughts, hold=held))
    person.type("How many?")
    person.see("Thinking…")
    held.set()
    person.wait()
    summary = person.page.locator(".reasoning summary")
    assert re.fullmatch(r"Thought (briefly|for \d\.\d s)", summary.inner_text())
    text = person.page.locator(".reasoning .markdown")
    assert not text.is_visible()
    summary.click()
    assert text.inner_text() == "Let me count."


def test_base_model_continues_the_text(make_person: Any, server: FakeServer) -> None:
    server.engine["has_chat_template"] = False
    person: Person = make_person()
    person.open()
    server.replies.extend([say(" lived a king."), say(" He had a cat.")])
    person.type("There")
    person.wait()
    person.page.press("#input", "Enter")  # more of the same
    person.wait()
    assert [request["prompt"] for request in server.requests] == ["There", "There lived a king."]
    assert person.texts(".plain") == ["lived a king.", "He had a cat."]
