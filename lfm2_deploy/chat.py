"""Messages -> the prompt text a chat model was trained on.

Enters: a Jinja template from a model's folder, and messages. Leaves: text that already
holds every special token, so it must be encoded with `add_special_tokens=False`.
Templates are foreign code: they run in a sandbox and see plain JSON values only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lfm2_deploy.errors import BundleError, TemplateError
from lfm2_deploy.tokenizer import read_tokenizer_config

Message = Mapping[str, Any]

TEMPLATE_FILE = "chat_template.jinja"

# Characters of a rendered conversation; 128K tokens are about half a million.
_LARGEST_TEXT = 10_000_000
_LARGEST_POWER = 10_000

# Names under which clients send a model's reasoning; templates may read any of them.
# In types of content parts that are no text.
_UNREAD = ("image", "audio", "video")
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template, rendering as transformers' `apply_chat_template` does."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile a template.

        Args:
            source: Jinja text.
            special_tokens: variables such as "bos_token" that the template may print.

        Raises:
            TemplateError: the text is not a valid template.
        """
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the chat template has a syntax error in line {error.lineno}: "
                f"{_one_line(error.message)}"
            ) from error
        except Exception as error:  # the compiler has limits of its own, such as its stack's
            raise TemplateError(
                f"the chat template cannot be compiled: {_one_line(error)}"
            ) from error

    @classmethod
    def find(
        cls, folder: Path, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate | None:
        """The template of a folder, or None: base models often have none.

        chat_template.jinja is preferred to the `chat_template` of tokenizer_config.json.

        Args:
            folder: a bundle or a checkpoint.
            special_tokens: see `ChatTemplate`; usually `Tokenizer.special_tokens`.

        Raises:
            TemplateError: there is one, but it cannot be used.
        """
        file = folder / TEMPLATE_FILE
        try:
            if file.is_file():
                return cls(file.read_text(encoding="utf-8"), special_tokens)
            listed = read_tokenizer_config(folder).get("chat_template")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(f"{file} cannot be read ({error}); download it again") from error
        except BundleError as error:
            raise TemplateError(str(error)) from error
        return None if listed is None else cls(_choose_default(listed), special_tokens)

    @classmethod
    def from_folder(
        cls, folder: Path, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate:
        """As `find`, for callers who cannot do without a template.

        Raises:
            TemplateError: there is none, or it cannot be used.
        """
        found = cls.find(folder, special_tokens)
        if found is None:
            raise TemplateError(
                f"no chat template in {folder}: expected chat_template.jinja, or 'chat_template' "
                "in tokenizer_config.json; a base model has none and takes plain text"
            )
        return found

    def render(
        self,
        /,  # so that a variable of the template may have this name
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any] | str] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """Lay out a conversation as text.

        Args:
            messages: each with a "role" and a "content" (or "tool_calls").
            tools: JSON schemas of the functions the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            **extra: further variables of the template, such as `keep_past_thinking`.

        Returns:
            Text to be encoded with `add_special_tokens=False`.

        Raises:
            TemplateError: the messages have the wrong shape, or the template refuses them.
        """
        variables = {
            **self._special_tokens,
            "documents": None,
            **_plain("template options", extra),
            "messages": [_prepare(i, message) for i, message in enumerate(_listed(messages))],
            "tools": None if tools is None else _plain("tools", list(tools)),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            pieces, size = [], 0
            for piece in self._template.generate(variables):
                size += len(piece)
                if size > _LARGEST_TEXT:
                    raise _RefusalError(f"it printed more than {_LARGEST_TEXT:,} characters")
                pieces.append(piece)
            return "".join(pieces)
        except _RefusalError as error:
            raise TemplateError(
                f"the chat template refused the messages: {_one_line(error)}"
            ) from error
        except Exception as error:  # whatever the template's own code may raise
            raise TemplateError(
                f"the chat template failed: {_one_line(error)}; "
                "compare the messages with what this model's template expects"
            ) from error


class _RefusalError(Exception):
    """A template called `raise_exception`."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Compiler(CodeGenerator):
    """Has `~` call the sandbox, as Jinja has the intercepted operators."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  Jinja's name
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses the operators by which a few characters become gigabytes."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Carry out an operator on small numbers, or on short texts."""
        most = _LARGEST_POWER if operator == "**" else _LARGEST_TEXT
        if operator == "+":
            is_number = isinstance(left, int | float)
            size = 0 if is_number else _size(left) + _size(right)
        else:
            size = _size(left) * _size(right)
        if size > most:
            raise _RefusalError(f"'{operator}' would make something too large")
        return super().call_binop(context, operator, left, right)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what `~`, a macro or a block makes."""
        listed = list(pieces)
        if sum(map(len, listed)) > _LARGEST_TEXT:
            raise _RefusalError("it would join texts to something too large")
        return "".join(listed)


def _size(value: Any) -> float:
    if isinstance(value, str | list | tuple):
        return len(value)
    return abs(value) if isinstance(value, int | float) else 0


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        optimized=False,  # folding constants would run operators while compiling
    )
    # Jinja's own tojson escapes < and >, and with them <|im_start|>.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _choose_default(listed: object) -> str:
    """The one template in tokenizer_config.json, or the one named "default"."""
    if isinstance(listed, str):
        return listed
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise TemplateError(
            "tokenizer_config.json: chat_template is neither text nor a list of named templates"
        )
    named = {entry.get("name"): entry.get("template") for entry in listed}
    chosen = named.get("default")
    if not isinstance(chosen, str):
        raise TemplateError(
            "tokenizer_config.json: no chat template is named 'default', only "
            + (", ".join(repr(name) for name in named) or "an empty list")
        )
    return chosen


def _listed(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(
            f"messages is a {type(messages).__name__}, expected a list of "
            '{"role": ..., "content": ...} objects'
        )
    if not messages:
        raise TemplateError("the list of messages is empty: give at least one")
    return messages


def _prepare(index: int, message: Message) -> dict[str, Any]:
    """A checked copy of one message, out of plain values."""
    if not isinstance(message, Mapping):
        raise TemplateError(
            f"message {index} is a {type(message).__name__}, expected an object with "
            "'role' and 'content'"
        )
    # Clients send content=None beside tool_calls; templates expect the key to be absent.
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise TemplateError(f"message {index} has no 'role': expected 'user', 'assistant', ...")
    if "content" not in given and not given.get("tool_calls"):
        raise TemplateError(f"message {index} (role '{role}') has no 'content': give its text")
    plain: dict[str, Any] = _plain(f"message {index}", given)
    _refuse_images(index, plain.get("content"))
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _refuse_images(index: int, content: Any) -> None:
    """Refuse what LFM2-VL's template would write as <image>, with no image behind it."""
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and any(name in kind for name in _UNREAD):
            raise TemplateError(
                f"message {index}: this model reads text only, not {kind!r}: a program that runs a "
                "vision tower itself appends embeddings to a session (prefill_embeddings)"
            )


def _plain(what: str, value: Any) -> Any:
    # Rebuilt from JSON, so that a template can call no method of an object a caller passed.
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(
            f"{what}: expected plain JSON values, but {_one_line(error)}; convert it first"
        ) from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
