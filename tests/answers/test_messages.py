"""Messages of OpenAI's clients become what templates take, or the error says which is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from lfm2_deploy.answers.messages import prepare_messages
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import TemplateError

HELLO = {"role": "user", "content": "Hello"}


def call(arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def prepare_one(message: dict[str, Any], **options: Any) -> dict[str, Any]:
    (prepared,) = prepare_messages([message], **options)
    return prepared


@pytest.mark.parametrize("arguments", ['{"city": "Łódź", "days": 2}', {"city": "Łódź", "days": 2}])
def test_arguments_become_an_object(arguments: Any) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}
    assert prepare_one(message) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [call({"city": "Łódź", "days": 2})],
    }


@pytest.mark.parametrize("arguments", [None, "", "{}"])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    message = {"role": "assistant", "tool_calls": [call(arguments)]}
    assert prepare_one(message)["tool_calls"] == [call({})]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{", "no JSON"),
        ("f(a=1)", "no JSON"),
        ('{"a": NaN}', "JSON has no NaN"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "type list, expected a JSON object"),
        (3, "type int, expected a JSON object"),
    ],
)
def test_bad_arguments_are_named_by_message_and_call(arguments: Any, reason: str) -> None:
    messages = [HELLO, {"role": "assistant", "tool_calls": [call({}), call(arguments)]}]
    with pytest.raises(TemplateError, match=rf"^message 1: tool call 1 \('weather'\).*{reason}"):
        prepare_messages(messages)


@pytest.mark.parametrize(
    "calls", [3, "f()", [3], [{}], [{"function": {"arguments": "{}"}}], [{"function": "f"}]]
)
def test_calls_of_another_shape_are_refused(calls: Any) -> None:
    with pytest.raises(TemplateError, match=r"^message 0: tool"):
        prepare_messages([{"role": "assistant", "tool_calls": calls}])


def test_old_form_of_a_call_is_understood() -> None:
    message = {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    assert prepare_one(message)["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    ]
    result = {"role": "function", "name": "f", "content": "2"}
    assert prepare_one(result) == {"role": "tool", "name": "f", "content": "2"}


def test_template_without_calls_gets_them_as_the_model_writes_them() -> None:
    calls = [call('{"city": "O\'Hare", "days": 2, "wet": true, "more": [1, null]}'), call("")]
    message = {"role": "assistant", "content": "I look. ", "tool_calls": calls}
    assert prepare_one(message, knows_calls=False) == {
        "role": "assistant",
        "content": 'I look. <|tool_call_start|>[weather(city="O\'Hare", days=2, wet=True, '
        "more=[1, null]), weather()]<|tool_call_end|>",
    }


def test_mark_in_an_argument_does_not_end_the_call() -> None:
    message = {"role": "assistant", "tool_calls": [call({"city": "<|tool_call_end|>"})]}
    content = prepare_one(message, knows_calls=False)["content"]
    assert content.count("<|tool_call_end|>") == 1
    assert r'city="\u003c|tool_call_end|>"' in content


def test_parts_of_text_are_joined() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        {"type": "output_text", "text": "c", "annotations": []},
        {"type": "refusal", "refusal": "d"},
        "e",
    ]
    assert prepare_one({"role": "user", "content": parts})["content"] == "abcde"


@pytest.mark.parametrize(
    "kind", ["image_url", "input_image", "input_audio", "file", "input_file", "video_url"]
)
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    messages = [HELLO, {"role": "user", "content": [{"type": kind, kind: {}}]}]
    with pytest.raises(TemplateError, match=f"^message 1 holds '{kind}', .*reads text only"):
        prepare_messages(messages)


def test_audio_of_an_answer_is_refused() -> None:
    with pytest.raises(TemplateError, match="holds 'audio'"):
        prepare_messages([{"role": "assistant", "audio": {"id": "a"}}])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Hello", "message 0 is a str"),
        ({"content": "a"}, "has the role None, expected one of system, developer, user"),
        ({"role": "robot", "content": "a"}, "has the role 'robot'"),
        ({"role": ["user"], "content": "a"}, "has the role"),
        ({"role": "user"}, "no 'content'"),
        ({"role": "user", "content": None}, "no 'content'"),
        ({"role": "user", "content": 3}, "content is a int"),
        ({"role": "user", "content": {"type": "text"}}, "content is a dict"),
        ({"role": "user", "content": [{"type": "text"}]}, "part of type 'text' has no 'text'"),
        ({"role": "user", "content": [3]}, "part of type int"),
    ],
)
def test_message_of_another_shape_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        prepare_messages([message])


@pytest.mark.parametrize("messages", ["Hello", HELLO, None, 3])
def test_messages_must_be_a_list(messages: Any) -> None:
    with pytest.raises(TemplateError, match="expected a list"):
        prepare_messages(messages)


def test_system_messages_are_joined_at_the_beginning() -> None:
    messages = [
        {"role": "developer", "content": "One."},
        HELLO,
        {"role": "system", "content": [{"type": "text", "text": "Two."}]},
        {"role": "system", "content": ""},
    ]
    assert prepare_messages(messages) == [{"role": "system", "content": "One.\n\nTwo."}, HELLO]


def test_refusal_stands_where_content_is_missing() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    assert prepare_one(message) == {"role": "assistant", "content": "I will not."}
    assert prepare_one({**message, "content": "a"})["content"] == "a"
    assert prepare_one({"role": "assistant", "content": None})["content"] == ""


def test_fields_that_templates_may_read_are_kept() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "3"}
    assert prepare_one(result) == result
    thought = {"role": "assistant", "content": "a", "reasoning_content": "b", "annotations": []}
    assert prepare_one(thought) == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "b",
    }


def test_messages_of_the_caller_are_not_changed() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}')]}
    prepare_messages([message])
    assert message["tool_calls"] == [call('{"a": 1}')]
    assert message["content"] is None


# Beside the demo model's template, the same conversation was rendered once with nine templates of
# LFM2 and LFM2.5, among them those of 1.2B-Instruct (which knows no `tool_calls`), 350M and VL:
# all took it, and the calls were read back by `AnswerParser`.
@pytest.mark.parametrize("knows_calls", [True, False])
def test_demo_models_template_takes_a_conversation_with_calls(knows_calls: bool) -> None:
    template = ChatTemplate.from_folder(DEMO_MODEL, {"bos_token": ""})
    messages = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "Weather?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call('{"city": "a", "wet": true}')]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "Cold.", "refusal": None},
    ]
    text = template.render(
        prepare_messages(messages, knows_calls=knows_calls), add_generation_prompt=False
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<|tool_call_start|>[weather(city="a", wet=True)]'
        "<|tool_call_end|><|im_end|>\n"
        "<|im_start|>tool\n<|tool_response_start|>3<|tool_response_end|><|im_end|>\n"
        "<|im_start|>assistant\nCold.<|im_end|>\n"
    )
