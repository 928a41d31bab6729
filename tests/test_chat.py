"""Messages become the text a template asks for; templates are foreign code and kept in."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import TemplateError
from lfm2_deploy.tokenizer import Tokenizer

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
TOOL = {
    "name": "weather",
    "description": "Température à <lieu>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Orléans", "days": 2, "wet": True}}}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": HELLO},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    "turns": {
        "messages": [*HELLO, {"role": "assistant", "content": "Hi!"}, *HELLO],
        "add_generation_prompt": False,
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("Hel", "lo")]}
        ]
    },
    "tools": {
        "messages": [
            *HELLO,
            {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": '{"celsius": 21}'},
        ],
        "tools": [TOOL, TOOL],
    },
    "system and tools": {
        "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
        "tools": [TOOL],
    },
}


def render(source: str, messages: Any = HELLO, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **variables)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.from_folder(DEMO_MODEL, tokenizer.special_tokens)


# The environment that templates are written for.


def test_first_newline_and_indent_of_a_block_are_trimmed() -> None:
    source = (
        "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}"
    )
    assert render(source) == "user\n"


def test_tojson_keeps_special_tokens_and_accents() -> None:
    content = "<|im_start|> & 'é' 漢 🙂"
    shown = render("{{ messages[0] | tojson }}", [{"role": "user", "content": content}])
    assert shown == json.dumps({"role": "user", "content": content}, ensure_ascii=False)
    assert "<|im_start|> & 'é' 漢 🙂" in shown


def test_tojson_takes_the_arguments_templates_pass() -> None:
    shown = render("{{ {'b': 1, 'a': 'é'} | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}")
    assert shown == '{\n  "a": "\\u00e9",\n  "b": 1\n}'


def test_text_is_not_html_escaped() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<a> & 'b'"}]) == (
        "<a> & 'b'"
    )


def test_raise_exception_surfaces_the_templates_message() -> None:
    with pytest.raises(TemplateError, match=r"refused the messages: roles must alternate$"):
        render("{{ raise_exception('roles must\n alternate') }}")


def test_generation_tag_changes_nothing() -> None:
    source = (
        "{% for m in messages %}{% generation %}[{{ m.content }}]{% endgeneration %}{% endfor %}"
    )
    assert render(source) == "[Hello]"


def test_strftime_now_gives_the_current_date() -> None:
    before = datetime.now()
    shown = datetime.fromisoformat(render("{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}"))
    assert before <= shown <= datetime.now()


def test_loop_controls_work() -> None:
    source = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}"
    source += "{% if i == 3 %}{% break %}{% endif %}{% endfor %}"
    assert render(source) == "023"


def test_variables_reach_the_template() -> None:
    source = "{{ bos_token }}{{ flag }}{{ tools is none }}{{ documents is none }}"
    source += "{{ add_generation_prompt }}"
    assert render(source, flag=3) == "<s>3TrueTrueTrue"
    assert render(source, flag=3, tools=[], add_generation_prompt=False) == "<s>3FalseTrueFalse"


# The sandbox.


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__.datetime }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_attribute_access_to_python_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="the chat template failed"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].clear() }}",
    ],
)
def test_mutation_is_refused_and_leaves_the_messages_alone(source: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(TemplateError, match="the chat template failed"):
        render(source, messages)
    assert messages == HELLO


def test_endless_range_is_refused() -> None:
    with pytest.raises(TemplateError, match="Range too big"):
        render("{% for i in range(10 ** 9) %}x{% endfor %}")


def test_callers_objects_do_not_reach_the_template() -> None:
    class Text(str):
        def secret(self) -> str:
            return "reached"

    with pytest.raises(TemplateError, match="failed"):
        render("{{ messages[0].content.secret() }}", [{"role": "user", "content": Text("Hello")}])


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ missing.attribute }}", "{{ 'a' + 1 }}"])
def test_failing_template_is_reported_in_one_line(source: str) -> None:
    with pytest.raises(TemplateError, match=r"\Athe chat template failed: [^\n]+\Z"):
        render(source)


def test_syntax_error_names_the_line() -> None:
    with pytest.raises(TemplateError, match="syntax error in line 2"):
        ChatTemplate("{{ bos_token }}\n{% for m in messages %}")


def test_unknown_filter_is_a_syntax_error() -> None:
    with pytest.raises(TemplateError, match="nosuchfilter"):
        ChatTemplate("{{ bos_token | nosuchfilter }}")


# Finding a template.


def test_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.find(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    assert ChatTemplate.find(tmp_path) is None
    with pytest.raises(TemplateError, match=re.escape(f"no chat template in {tmp_path}")):
        ChatTemplate.from_folder(tmp_path)


def test_template_file_is_preferred_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "config"
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "file é"


def test_default_is_picked_among_named_templates(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.from_folder(tmp_path).render(HELLO) == "yes"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"name": "rag", "template": "no"}], "only 'rag'"),
        ([{"name": "default", "template": 3}], "only 'default'"),
        ([], "only an empty list"),
        (["text"], "neither text nor a list"),
        ({"default": "x"}, "neither text nor a list"),
    ],
)
def test_unusable_list_of_templates_is_refused(tmp_path: Path, listed: Any, message: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    with pytest.raises(TemplateError, match=message):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_unreadable_template_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TemplateError, match=re.escape(str(tmp_path / name))):
        ChatTemplate.find(tmp_path)


# Messages.


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "the list of messages is empty"),
        ("Hello", "messages is a str"),
        ({"role": "user", "content": "Hello"}, "messages is a dict"),
        (["Hello"], "message 0 is a str"),
        ([*HELLO, {"content": "Hello"}], "message 1 has no 'role'"),
        ([{"role": "", "content": "Hello"}], "message 0 has no 'role'"),
        ([{"role": 3, "content": "Hello"}], "message 0 has no 'role'"),
        ([{"role": "user"}], r"message 0 \(role 'user'\) has no 'content'"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "has no 'content'"),
        ([{"role": "user", "content": object()}], "message 0: expected plain JSON values"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, expected: str) -> None:
    with pytest.raises(TemplateError, match=expected):
        render("{{ messages }}", messages)


def test_content_none_beside_tool_calls_counts_as_absent() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    source = "{{ messages[0].content is defined }} {{ messages[0].tool_calls[0].function.name }}"
    assert render(source, [message]) == "False weather"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template_under_either_name(name: str) -> None:
    message = {"role": "assistant", "content": "4", name: "2 + 2"}
    source = "{{ messages[0].thinking }} = {{ messages[0].reasoning_content }}"
    assert render(source, [message]) == "2 + 2 = 2 + 2"


def test_tools_that_are_no_json_are_refused() -> None:
    with pytest.raises(TemplateError, match="tools: expected plain JSON values"):
        render("{{ tools }}", tools=[{"call": print}])


# The demo model's template, which lays turns out as LFM2's does.


def test_user_turn_renders_as_lfm2_does(template: ChatTemplate) -> None:
    assert template.render(HELLO) == (
        "<|startoftext|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_conversation_renders_as_lfm2_does(template: ChatTemplate) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who wrote Emma?"},
        {"role": "assistant", "content": "Jane Austen."},
        {"role": "user", "content": "When?"},
    ]
    assert template.render(messages, add_generation_prompt=False) == (
        "<|startoftext|>"
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho wrote Emma?<|im_end|>\n"
        "<|im_start|>assistant\nJane Austen.<|im_end|>\n"
        "<|im_start|>user\nWhen?<|im_end|>\n"
    )


def test_tools_render_as_lfm2_does(template: ChatTemplate) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "21 °C"},
    ]
    assert template.render(messages, tools=[TOOL]) == (
        "<|startoftext|>"
        "<|im_start|>system\nBe brief.\n"
        'List of tools: <|tool_list_start|>[{"name": "weather", "description": '
        '"Température à <lieu>", "parameters": {"type": "object", "properties": '
        '{"city": {"type": "string"}}}}]<|tool_list_end|><|im_end|>\n'
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<|tool_call_start|>[weather(city="Orléans", days=2, wet=True)]<|tool_call_end|>'
        "<|im_end|>\n"
        "<|im_start|>tool\n<|tool_response_start|>21 °C<|tool_response_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_part_that_is_no_text_is_refused_before_a_template_marks_it(kind: str) -> None:
    marks_images = "{% for p in messages[0].content %}<image>{% endfor %}"
    with pytest.raises(TemplateError, match=f"message 0: this model reads text only, not '{kind}'"):
        ChatTemplate(marks_images).render([{"role": "user", "content": [{"type": kind}]}])


def test_part_that_is_no_text_is_refused_by_the_demo_template(template: ChatTemplate) -> None:
    with pytest.raises(TemplateError, match=r"template refused .*reads text only, not 'file'"):
        template.render([{"role": "user", "content": [{"type": "file", "url": "x"}]}])


def test_rendered_chat_begins_with_one_start_token(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(template.render(HELLO), add_special_tokens=False)
    assert ids[:2] == [1, 6]
    assert ids.count(1) == 1


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_demo_template_renders_as_transformers_does(template: ChatTemplate, name: str) -> None:
    theirs = AutoTokenizer.from_pretrained(DEMO_MODEL)
    arguments = {"add_generation_prompt": True} | CONVERSATIONS[name]
    text = template.render(**arguments)
    messages = arguments.pop("messages")
    assert text == theirs.apply_chat_template(messages, tokenize=False, **arguments)
    ids = theirs.apply_chat_template(messages, return_dict=False, **arguments)
    assert Tokenizer.from_folder(DEMO_MODEL).encode(text, add_special_tokens=False) == ids


def test_folder_with_a_config_only_renders_the_same(
    template: ChatTemplate, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    raw = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())
    raw["chat_template"] = (DEMO_MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    copied = ChatTemplate.from_folder(tmp_path, Tokenizer.from_folder(tmp_path).special_tokens)
    assert copied.render(HELLO) == template.render(HELLO)
