"""A conversation's turns, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pytest

from lfm2_deploy.commands.conversation import Conversation
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.prompt_cache import PromptCache

SHORT = {"temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture
def conversation(model: LanguageModel) -> Conversation:
    return Conversation(model, dict(SHORT), PromptCache(model.runtime))


def answer(conversation: Conversation, text: str) -> str:
    return "".join(chunk.text for chunk in conversation.ask(text, Event()))


def test_answer_becomes_a_turn(conversation: Conversation) -> None:
    text = answer(conversation, "Hello")
    assert conversation.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": text},
    ]


def test_second_answer_is_that_of_the_whole_conversation(
    conversation: Conversation, model: LanguageModel
) -> None:
    answer(conversation, "Hello")
    messages = [*conversation.messages, {"role": "user", "content": "And then?"}]
    assert answer(conversation, "And then?") == model.generate(messages, **SHORT).text


def test_system_message_comes_first(conversation: Conversation) -> None:
    conversation.system = "Be kind."
    answer(conversation, "Hello")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]


def test_regenerate_replaces_the_last_answer(conversation: Conversation) -> None:
    first = answer(conversation, "Hello")
    again = "".join(chunk.text for chunk in conversation.regenerate(Event()))
    assert again == first
    assert len(conversation.turns) == 2


def test_regenerate_before_any_answer_is_an_error(conversation: Conversation) -> None:
    with pytest.raises(GenerationError, match="no answer yet"):
        conversation.regenerate(Event())


def test_overflow_leaves_the_conversation_as_it_was(conversation: Conversation) -> None:
    answer(conversation, "Hello")
    before = list(conversation.turns)
    with pytest.raises(ContextOverflowError):
        conversation.ask("and " * 3000, Event())
    assert conversation.turns == before


def test_cancelled_before_a_word_is_no_turn(conversation: Conversation) -> None:
    cancel = Event()
    cancel.set()
    chunks = list(conversation.ask("Hello", cancel))
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.finish_reason == "cancelled"
    assert conversation.turns == []


def test_cancelled_midway_keeps_what_was_said(model: LanguageModel) -> None:
    overrides = {"temperature": 0.0, "ignore_eos": True}
    conversation = Conversation(model, overrides, PromptCache(model.runtime))
    cancel = Event()
    text = ""
    for chunk in conversation.ask("Hello", cancel):
        text += chunk.text
        if len(text) > 10:
            cancel.set()
    assert conversation.turns[-1] == {"role": "assistant", "content": text}


def test_reset_keeps_the_system_message(conversation: Conversation) -> None:
    conversation.system = "Be kind."
    answer(conversation, "Hello")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]


def test_saved_file_holds_the_messages_and_is_not_replaced(
    conversation: Conversation, tmp_path: Path
) -> None:
    answer(conversation, "Hé")
    file = tmp_path / "talk.json"
    conversation.save(file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": conversation.messages}
    with pytest.raises(GenerationError, match="exists"):
        conversation.save(file)


def test_nothing_is_saved_where_nothing_was_said_or_nothing_can_be_written(
    conversation: Conversation, tmp_path: Path
) -> None:
    conversation.system = "Be kind."
    with pytest.raises(GenerationError, match="say something first"):
        conversation.save(tmp_path / "talk.json")
    assert not (tmp_path / "talk.json").exists()
    answer(conversation, "Hello")
    absent = tmp_path / "absent" / "talk.json"
    with pytest.raises(GenerationError) as caught:
        conversation.save(absent)
    assert str(caught.value).startswith(f"{absent} cannot be written (No such file or directory)")


def test_edit_puts_another_message_in_the_last_ones_place(
    conversation: Conversation, model: LanguageModel
) -> None:
    answer(conversation, "Hello")
    answer(conversation, "And then?")
    before = conversation.messages[:2]
    text = "".join(chunk.text for chunk in conversation.edit("And now?", Event()))
    question = {"role": "user", "content": "And now?"}
    assert conversation.messages == [*before, question, {"role": "assistant", "content": text}]
    assert text == model.generate([*before, question], **SHORT).text


def test_undo_takes_back_the_last_message_and_its_answer(conversation: Conversation) -> None:
    answer(conversation, "Hello")
    before = conversation.messages
    answer(conversation, "And then?")
    conversation.undo()
    assert conversation.messages == before
    conversation.undo()
    with pytest.raises(GenerationError, match="say something first"):
        conversation.undo()


def test_each_turn_computes_only_what_is_new(conversation: Conversation) -> None:
    reused = []
    for text in ("Hello", "And then?", "And now?"):
        *_, last = conversation.ask(text, Event())
        assert last.completion is not None
        reused.append((last.completion.prompt_tokens, last.completion.reused_tokens))
    (first, none), (second, one), (_, two) = reused
    assert none == 0
    assert one >= first  # all of the first turn
    assert two >= second
