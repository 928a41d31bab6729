"""A prompt and wishes -> requests that the scheduler can run.

Enters: text, messages or token ids; tools; options. Leaves: `Request`s. Knows nothing of queues.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from lfm2_deploy.answers.marks import CALL_END, CALL_START, THINK_END, THINK_START
from lfm2_deploy.answers.messages import prepare_messages
from lfm2_deploy.answers.parser import AnswerParser, markers
from lfm2_deploy.answers.tool_grammar import Thinking, build_tool_grammar
from lfm2_deploy.answers.tools import ChosenTools, choose_tools, find_strict, normalize_tools
from lfm2_deploy.chat import Message
from lfm2_deploy.errors import GenerationError, RequestError, TemplateError
from lfm2_deploy.generate import LanguageModel, Prompt
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.serving.after_reasoning import AfterReasoning
from lfm2_deploy.serving.request import Deliver, Request
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.tokens import check_room, check_rows

# "auto", "none", "required", a function's name, or one of OpenAI's objects.
ToolChoice: TypeAlias = str | Mapping[str, Any]

# The prompt of a model that reasons first may open its reasoning itself.
_LAST_TOKENS = 8
_MOST_CHOICES = 64
# What a template is given besides.
_NO_OPTIONS = frozenset({"messages", "tools"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a model; every field is as `Engine.stream` takes it."""

    prompt: Prompt
    options: GenerationOptions
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    n: int = 1
    template_options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Reading:
    """A wish as the model takes it.

    Args:
        ids: the prompt.
        options: with the grammar of the calls that may or must be made.
        tools: those that may be called, for a chat that has any.
        is_chat: the answer may hold reasoning and calls.
        opened: the prompt ends inside the model's reasoning.
    """

    ids: tuple[int, ...]
    options: GenerationOptions
    tools: tuple[dict[str, Any], ...] | None = None
    is_chat: bool = False
    opened: bool = False


def prepare(model: LanguageModel, wish: Wish, deliver: Deliver) -> tuple[Request, ...]:
    """Check a wish, and make one request for each answer.

    Args:
        model: which reads the prompt.
        wish: what is asked.
        deliver: takes the events of all of them.

    Raises:
        TemplateError, GenerationError: it cannot be carried out.
        RuntimeUnavailableError: a grammar is wanted, and llguidance is not installed.
    """
    if not 1 <= wish.n <= _MOST_CHOICES:
        raise GenerationError(f"n is {wish.n}, expected an integer from 1 to {_MOST_CHOICES}")
    reading = _read(model, wish)
    check_rows([reading.ids])
    context = model.runtime.context_length
    check_room([len(reading.ids)], reading.options.max_new_tokens, context)
    constraints = model.make_constraints(reading.options, wish.n)
    if reading.opened and wish.options.grammar is not None:
        constraints = [one and AfterReasoning(one, model.tokenizer) for one in constraints]
    kept = markers(model.tokenizer) if reading.is_chat else frozenset()
    return tuple(
        Request(
            reading.ids,
            _vary_seed(reading.options, choice),
            deliver,
            constraint=constraint,
            parser=_make_parser(reading, choice),
            kept=kept,
            choice=choice,
        )
        for choice, constraint in enumerate(constraints)
    )


def _read(model: LanguageModel, wish: Wish) -> _Reading:
    if isinstance(wish.prompt, str) or _is_ids(wish.prompt):
        if wish.tools:
            raise GenerationError("tools need a chat: give messages, not a text or token ids")
        return _Reading(tuple(model.encode_prompt(wish.prompt)), wish.options)
    messages = cast("Sequence[Message]", wish.prompt)
    template = model.chat_template
    knows_calls = template is None or "tool_calls" in template.source
    prepared = prepare_messages(messages, knows_calls=knows_calls)
    chosen = choose_tools(normalize_tools(wish.tools or ()), wish.tool_choice)
    shown = list(chosen.shown) or None
    template_options = wish.template_options or {}
    taken = next((name for name in template_options if name in _NO_OPTIONS), None)
    if taken is not None:
        raise TemplateError(f"'{taken}' is no option of a chat template: leave it out")
    ids = tuple(model.encode_prompt(prepared, tools=shown, **template_options))
    ending = model.tokenizer.decode(ids[-_LAST_TOKENS:], skip_special_tokens=False)
    opened = ending.rstrip().endswith(THINK_START)
    options = _constrain_calls(model.tokenizer, wish, chosen, opened)
    return _Reading(ids, options, chosen.shown or None, True, opened)


def _constrain_calls(
    tokenizer: Tokenizer, wish: Wish, chosen: ChosenTools, opened: bool
) -> GenerationOptions:
    """Options with the grammar of the calls that may or must be made, where there is any."""
    given = wish.options.grammar
    if chosen.forced and given is not None:
        raise RequestError("a call of a tool and a grammar are wanted: leave one of them out")
    is_strict = bool(find_strict(wish.tools or ()) & {tool["name"] for tool in chosen.shown})
    if not chosen.forced and not (chosen.shown and (is_strict or given is not None)):
        return wish.options
    marks = (CALL_START, CALL_END, THINK_START, THINK_END)
    is_free = not chosen.forced and given is None
    thinking: Thinking = "may" if is_free else "no"
    lark = build_tool_grammar(
        chosen.forced or chosen.shown,
        special_marks={m for m in marks if tokenizer.token_id(m) in tokenizer.special_ids},
        # What follows a given grammar begins after the reasoning by itself; see `prepare`.
        thinking="inside" if opened and given is None else thinking,
        required=not is_free,
        most_calls=None if _may_call_several(wish) else 1,
        otherwise=None if given is None else _read_schema(given),
    )
    return replace(wish.options, grammar=Grammar.lark(lark))


def _may_call_several(wish: Wish) -> bool:
    """Whether one list may hold several calls: who names a function wants it called once."""
    choice = wish.tool_choice
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return wish.parallel_tool_calls and kind in ("auto", "required", "allowed_tools", None)


def _read_schema(grammar: Grammar) -> dict[str, Any]:
    """The schema of a grammar that is an alternative to calls.

    Raises:
        RequestError: it has none.
    """
    if grammar.kind == "json":
        return {"type": "object"}
    if grammar.kind != "json_schema":
        raise RequestError(
            f"tools go together with JSON and JSON schemas, and a {grammar.name} is given: leave "
            'it or the tools out, or set tool_choice to "none"'
        )
    schema: dict[str, Any] = json.loads(grammar.source)
    return schema


def _make_parser(reading: _Reading, choice: int) -> AnswerParser | None:
    if not reading.is_chat:
        return None
    return AnswerParser(tools=reading.tools, starts_in_reasoning=reading.opened, choice=choice)


def _vary_seed(options: GenerationOptions, choice: int) -> GenerationOptions:
    seed = options.sampling.seed
    if seed is None or not choice:
        return options
    return replace(options, sampling=replace(options.sampling, seed=seed + choice))


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and all(isinstance(item, int) for item in prompt)
