"""Two tabs of one browser that show the same conversations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from .fake_server import FakeServer, say
from .person import Person

# In the page: what is stored of the only conversation.
STORED = """(() => {
  const name = Object.keys(localStorage).find((one) => one.startsWith("lfm2.conversation."));
  return name ? localStorage.getItem(name) : "";
})()"""


@pytest.fixture
def begun(person: Person) -> Person:
    """The first tab, with a conversation, before a second one is opened."""
    person.say("Question")
    return person


@pytest.fixture
def tabs(begun: Person, request: pytest.FixtureRequest) -> tuple[Person, Person]:
    return begun, request.getfixturevalue("neighbour")


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Lets an answer end; also at the end of a test."""
    event = threading.Event()
    yield event
    event.set()


def test_messages_of_two_tabs_are_all_kept(
    tabs: tuple[Person, Person], server: FakeServer, held: threading.Event
) -> None:
    first, second = tabs
    server.replies.append(say("Slow answer", hold=held))
    first.type("From the first")
    first.see("Slow answer")
    # The second tab regenerates the earlier answer; the first knows nothing of it when it saves.
    server.replies.append(say("Regenerated."))
    second.page.locator(".answer").first.get_by_label("Regenerate").click()
    second.see("Regenerated.")
    held.set()
    first.wait()
    second.until(f"{STORED}.includes('Slow answer') && {STORED}.includes('Regenerated.')")
    first.reload()
    shown = first.answers
    first.press("Previous version") if "Regenerated." in shown else first.press("Next version")
    assert {*shown, *first.answers} == {"Yes.", "Regenerated.", "Slow answer"}


MERGE = """async ([base, first, second]) => {
  const { merge } = await import("./merge.js");
  const { addNode, newConversation, isConversation } = await import("./tree.js");
  const one = newConversation({});
  const root = addNode(one, "root", { role: "user", content: base });
  const other = structuredClone(one);
  addNode(one, root.id, { role: "assistant", content: first });
  addNode(other, root.id, { role: "assistant", content: second });
  const [left, right] = [structuredClone(one), structuredClone(other)];
  const ahead = merge(left, structuredClone(other), new Set());
  merge(right, structuredClone(one), new Set());
  const again = merge(left, structuredClone(right), new Set());
  const children = (tree) => tree.nodes[root.id].children;
  const shown = (tree) => tree.nodes[tree.nodes[root.id].chosen].content;
  const same = JSON.stringify(children(left)) === JSON.stringify(children(right));
  return [ahead, again, same, shown(left), shown(right), isConversation(left)];
}"""


def test_merging_gives_both_tabs_the_same_tree_and_leaves_what_each_shows(person: Person) -> None:
    assert person.run(MERGE, ["a", "b", "c"]) == [True, False, True, "b", "c", True]


def test_answer_that_comes_in_another_tab_is_shown_as_such_and_can_be_stopped(
    tabs: tuple[Person, Person], server: FakeServer, held: threading.Event
) -> None:
    first, second = tabs
    server.replies.append(say("Slow answer", hold=held))
    first.type("Go on")
    first.see("Slow answer")
    second.page.locator(".answer.running").wait_for()
    assert second.numbers == "comes in another tab"
    # It is asked for longer than a tab has to answer that asks whose it is.
    second.page.wait_for_timeout(1200)
    assert second.numbers == "comes in another tab"
    second.press("Stop")
    first.wait()
    second.wait()
    assert first.numbers.startswith("stopped")
    assert second.numbers.startswith("stopped")
    assert second.answers[-1] == "Slow answer"


def test_answer_of_a_tab_that_crashed_is_stopped(person: Person) -> None:
    person.say("Question")
    person.run("""() => {
      const name = Object.keys(localStorage).find((one) => one.startsWith("lfm2.conversation."));
      const text = localStorage.getItem(name).replace('"state":"done"', '"state":"running"');
      localStorage.setItem(name, text);
    }""")
    person.reload()
    assert person.numbers == "comes in another tab"
    person.wait()
    assert person.numbers.startswith("stopped")


def test_half_typed_texts_stay_while_another_tab_writes(
    tabs: tuple[Person, Person], server: FakeServer
) -> None:
    first, second = tabs
    second.press("Edit message", ".said")
    second.page.fill(".said textarea", "half typed")
    first.say("More")
    second.until("document.querySelectorAll('.said').length === 2")
    assert second.page.input_value(".said textarea") == "half typed"
    assert second.run("document.activeElement.matches('.said textarea')")
    second.manage("Rename", "Question")
    second.page.keyboard.type("Better")
    first.say("Even more")
    second.until("document.querySelectorAll('.said').length === 3")
    second.page.keyboard.press("Enter")
    assert second.texts("#conversations .title") == ["Better"]
    first.until("document.querySelector('#conversations .title').textContent === 'Better'")


def test_conversation_deleted_in_another_tab_is_told_and_does_not_come_back(
    tabs: tuple[Person, Person], server: FakeServer, held: threading.Event
) -> None:
    first, second = tabs
    server.replies.append(say("Slow answer", hold=held))
    first.type("Go on")
    first.see("Slow answer")
    second.manage("Delete", "Question")
    line = first.page.locator(".notice", has_text="“Question” was deleted in another tab.")
    line.wait_for()
    assert first.answers[-1] == "Slow answer"
    held.set()
    first.wait()
    assert not first.numbers.startswith("stopped")
    assert first.texts("#conversations .title") == []
    assert first.run(STORED) == ""
    first.press("New conversation")
    assert line.count() == 0


def test_conversation_deleted_in_another_tab_can_be_kept(tabs: tuple[Person, Person]) -> None:
    first, second = tabs
    second.manage("Delete", "Question")
    first.press("Keep it")
    assert first.texts("#conversations .title") == ["Question"]
    second.page.locator("#conversations .title").wait_for()
    first.say("More")
    first.reload()
    assert first.said == ["Question", "More"]


def test_undo_in_one_tab_shows_the_conversation_in_the_other(tabs: tuple[Any, Any]) -> None:
    first, second = tabs
    second.manage("Delete", "Question")
    first.buttons("Keep it").wait_for()
    second.press("Undo")
    first.page.locator("#conversations .title").wait_for()
    assert first.buttons("Keep it").count() == 0
    first.say("More")
    second.see("More")
