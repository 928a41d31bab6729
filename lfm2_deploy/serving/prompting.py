"""A prompt and wishes -> requests that the scheduler can run.

Enters: text, messages or token ids; tools; options. Leaves: `Request`s without a reader. Knows
nothing of queues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

from lfm2_deploy.answers.parser import AnswerParser, markers
from lfm2_deploy.chat import Message
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.generate import LanguageModel, Prompt
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.serving.request import Deliver, Request
from lfm2_deploy.tokens import check_room, check_rows

# "auto", "none", "required", or a function's name.
ToolChoice: TypeAlias = Literal["auto", "none", "required"] | str

# The prompt of a model that reasons first may open its reasoning itself.
_OPENING = "<think>"
_LAST_TOKENS = 8
_MOST_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a model.

    Args:
        prompt, options, tools, tool_choice, n, template_options: as `Engine.stream` takes them.
    """

    prompt: Prompt
    options: GenerationOptions
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: ToolChoice = "auto"
    n: int = 1
    template_options: Mapping[str, Any] = field(default_factory=dict)


def prepare(model: LanguageModel, wish: Wish, deliver: Deliver) -> tuple[Request, ...]:
    """Check a wish, and make one request for each answer.

    Args:
        model: which reads the prompt.
        wish: what is asked.
        deliver: takes the events of all of them.

    Raises:
        TemplateError, GenerationError: it cannot be carried out.
    """
    if not 1 <= wish.n <= _MOST_CHOICES:
        raise GenerationError(f"n is {wish.n}, expected an integer from 1 to {_MOST_CHOICES}")
    is_chat = not isinstance(wish.prompt, str) and not _is_ids(wish.prompt)
    if wish.tools and not is_chat:
        raise GenerationError("tools need a chat: give messages, not a text or token ids")
    ids = tuple(_encode(model, wish, is_chat))
    check_rows([ids])
    check_room([len(ids)], wish.options.max_new_tokens, model.runtime.context_length)
    return tuple(_make(model, wish, deliver, ids, is_chat, choice) for choice in range(wish.n))


def _encode(model: LanguageModel, wish: Wish, is_chat: bool) -> list[int]:
    if not is_chat:
        return model.encode_prompt(wish.prompt)
    messages = cast("Sequence[Message]", wish.prompt)
    return model.encode_prompt(messages, tools=wish.tools, **wish.template_options)


def _make(
    model: LanguageModel,
    wish: Wish,
    deliver: Deliver,
    ids: tuple[int, ...],
    is_chat: bool,
    choice: int,
) -> Request:
    options = wish.options
    if options.sampling.seed is not None and choice:
        sampling = replace(options.sampling, seed=options.sampling.seed + choice)
        options = replace(options, sampling=sampling)
    parser = None
    if is_chat:
        opened = model.tokenizer.decode(ids[-_LAST_TOKENS:], skip_special_tokens=False)
        parser = AnswerParser(
            tools=wish.tools,
            starts_in_reasoning=opened.rstrip().endswith(_OPENING),
            choice=choice,
        )
    return Request(
        ids,
        options,
        deliver,
        constraint=model.make_constraint(options),
        parser=parser,
        kept=markers(model.tokenizer) if is_chat else frozenset(),
        choice=choice,
    )


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(isinstance(item, int) for item in prompt)
