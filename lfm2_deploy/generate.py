"""Prompts as text or chats -> text, whole or as it comes.

Enters: a runtime, a tokenizer and perhaps a chat template. Leaves: `Completion`s, or a
stream of `TextChunk`s. Knows contracts and no backend; token ids are `tokens`' work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias, TypeGuard, cast

from lfm2_deploy.answers.special_text import encode_chat
from lfm2_deploy.chat import ChatTemplate, Message
from lfm2_deploy.completion import (
    Completion,
    RunningCompletion,
    TextChunk,
    stream_completions,
)
from lfm2_deploy.constraints import Constraint
from lfm2_deploy.contracts import Capabilities, Runtime, Session
from lfm2_deploy.errors import ContextOverflowError, GenerationError, TemplateError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.registry import GRAMMAR_COMPILER
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.tokens import (
    CancelSignal,
    Start,
    TokenGeneration,
    check_room,
    check_rows,
    generate_tokens,
)

# A long prompt is appended in pieces of this many tokens, and may be cancelled between.
_PREFILL_SLICE = 512

# Plain text, a chat, or token ids.
Prompt: TypeAlias = str | Sequence[Message] | Sequence[int]


class LanguageModel:
    """A runtime that understands text.

    Every method takes `options`, or else the model's defaults, and on top of them any
    field of `GenerationOptions` by name: `model.generate("Once", max_new_tokens=20)`.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        defaults: GenerationOptions | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        """Put the parts together.

        Args:
            runtime: the loaded model.
            tokenizer: the same model's.
            chat_template: the same model's; None for a base model, which takes no chats.
            defaults: options of calls that give none; greedy when None.
            remarks: what a user should know of it, beside what the runtime notes.
        """
        self.remarks = tuple(remarks)
        self.runtime = runtime
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.defaults = defaults or GenerationOptions()

    def encode_prompt(
        self,
        prompt: Prompt,
        /,  # so that options of a template may have any name
        *,
        tools: Sequence[Mapping[str, Any] | str] | None = None,
        **template_options: Any,
    ) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: plain text, a list of messages, or token ids, which are taken as they are.
            tools: JSON schemas of functions, for a chat.
            **template_options: further options of `ChatTemplate.render`, for a chat.

        Raises:
            TemplateError: a chat that the template, or a model without one, cannot take.
            ContextOverflowError: a text that is far too long.
            GenerationError: the prompt is none of these, or its ids are not the model's.
        """
        if isinstance(prompt, str):
            self._check_length(prompt)
            ids = self.tokenizer.encode(prompt, add_special_tokens=True)
        elif _is_ids(prompt):
            ids = list(prompt)
        else:
            chat = cast("Sequence[Message]", prompt)
            ids = self._encode_chat(chat, tools, template_options)
        width = self.runtime.config.vocab_size
        stray = next((token_id for token_id in ids if not 0 <= token_id < width), None)
        if stray is not None:
            raise GenerationError(
                f"the prompt holds token {stray}, and the model's vocabulary ends at {width - 1}: "
                "use the tokenizer of this very model"
            )
        return ids

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        cancel: CancelSignal | None = None,
        session: Session | None = None,
        cache: PromptCache | None = None,
        **overrides: Any,
    ) -> Completion:
        """Answer one prompt; see `stream_batch` and `stream` for arguments and errors."""
        chunks = self.stream(
            prompt, options, cancel=cancel, session=session, cache=cache, **overrides
        )
        # To the end, where a cache is given back.
        *_, last = chunks
        assert last.completion is not None
        return last.completion

    def chat(
        self,
        messages: Sequence[Message],
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any] | str] | None = None,
        cancel: CancelSignal | None = None,
        cache: PromptCache | None = None,
        **overrides: Any,
    ) -> Completion:
        """Answer a conversation, in which the model may call `tools`.

        With `tools`, special tokens stay in the text unless `skip_special_tokens` says
        otherwise: LFM2 marks its calls by <|tool_call_start|> and <|tool_call_end|>.
        """
        if tools:
            overrides.setdefault("skip_special_tokens", False)
        ids = self.encode_prompt(messages, tools=tools)
        return self.generate(ids, options, cancel=cancel, cache=cache, **overrides)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | None = None,
        *,
        cancel: CancelSignal | None = None,
        session: Session | None = None,
        **overrides: Any,
    ) -> list[Completion]:
        """Answer several prompts together; see `stream_batch` for arguments and errors."""
        chunks = self.stream_batch(prompts, options, cancel=cancel, session=session, **overrides)
        finished = {chunk.row: chunk.completion for chunk in chunks if chunk.completion}
        return [finished[row] for row in range(len(prompts))]

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        cancel: CancelSignal | None = None,
        session: Session | None = None,
        cache: PromptCache | None = None,
        **overrides: Any,
    ) -> Iterator[TextChunk]:
        """Answer one prompt piece by piece; see `stream_batch` for arguments and errors.

        Args:
            prompt: as `encode_prompt` takes it.
            options: the model's defaults when None.
            cancel: ends the answer before its next token once set.
            session: an open one to use instead of a fresh one; it is emptied first.
            cache: what was computed for earlier prompts; only what is new in this one is
                computed. It is in use until the answer ends, or the iterator is closed.
            **overrides: any option by name, put over `options`.
        """
        if cache is None:
            return self.stream_batch([prompt], options, cancel=cancel, session=session, **overrides)
        if session is not None:
            raise GenerationError("a prompt cache has sessions of its own: give one of the two")
        if cache.runtime is not self.runtime:
            raise GenerationError("this prompt cache is of another model: make one for this")
        chosen = (options or self.defaults).with_overrides(**overrides)
        ids = self.encode_prompt(prompt)
        check_rows([ids])
        check_room([len(ids)], chosen.max_new_tokens, self.runtime.context_length)
        return self._stream_cached(ids, chosen, self.make_constraints(chosen, 1), cancel, cache)

    def _stream_cached(
        self,
        ids: Sequence[int],
        options: GenerationOptions,
        constraints: Sequence[Constraint | None],
        cancel: CancelSignal | None,
        cache: PromptCache,
    ) -> Iterator[TextChunk]:
        with cache.reuse(ids) as (session, start):
            generation = self._begin(session, [ids], options, constraints, cancel, start)
            answer = RunningCompletion(self.tokenizer, options, len(ids), start.held[0])
            yield from stream_completions(generation, [answer])

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        options: GenerationOptions | None = None,
        *,
        cancel: CancelSignal | None = None,
        session: Session | None = None,
        **overrides: Any,
    ) -> Iterator[TextChunk]:
        """Answer several prompts together, piece by piece.

        The request is checked here; the model runs as the chunks are taken.

        Args:
            prompts: each as `encode_prompt` takes it.
            options: the model's defaults when None.
            cancel: ends every row before its next token once set.
            session: an open one to use instead of a fresh one; it is emptied first.
            **overrides: any option by name, put over `options`.

        Returns:
            One chunk a token; rows take turns.

        Raises:
            TemplateError, GenerationError: see `encode_prompt`; or more prompts than the
                runtime takes at once, an empty one, or an option out of range.
            GrammarError, RuntimeUnavailableError: see `make_constraints`.
            ContextOverflowError: a prompt and the new tokens asked for do not fit.
        """
        chosen = (options or self.defaults).with_overrides(**overrides)
        rows = [self.encode_prompt(prompt) for prompt in prompts]
        check_rows(rows)
        constraints = self.make_constraints(chosen, len(rows))
        if session is None:
            session = self._open(rows, chosen.max_new_tokens)
        else:
            session.reset()
        generation = self._begin(session, rows, chosen, constraints, cancel)
        answers = [RunningCompletion(self.tokenizer, chosen, len(row)) for row in rows]
        return stream_completions(generation, answers)

    def _begin(
        self,
        session: Session,
        rows: Sequence[Sequence[int]],
        options: GenerationOptions,
        constraints: Sequence[Constraint | None],
        cancel: CancelSignal | None,
        start: Start | None = None,
    ) -> TokenGeneration:
        able = self.runtime.info.capabilities
        return generate_tokens(
            session,
            rows,
            options,
            self.runtime.config.eos_token_ids,
            cancel,
            prefill_slice=choose_slice(able),
            start=start,
            # A proposal holds the last token besides the guesses.
            most_guesses=max(0, min(options.prompt_lookup_num_tokens, able.max_proposal - 1)),
            appends_many=able.appends_many,
            constraints=constraints,
        )

    def make_constraints(self, options: GenerationOptions, count: int) -> list[Constraint | None]:
        """What keeps each of several answers within `options.grammar`, which is compiled once.

        Args:
            options: with a grammar, or without: then there is nothing to keep to.
            count: how many answers.

        Raises:
            GrammarError: the grammar is not understood, too large, or no text follows it.
            RuntimeUnavailableError: llguidance is not installed.
            GenerationError: `logit_bias` names a token that the model has not.
        """
        width = self.runtime.config.vocab_size
        for token_id, _ in options.sampling.logit_bias:
            if token_id >= width:
                raise GenerationError(
                    f"logit_bias names token {token_id}, and the model's vocabulary ends at "
                    f"{width - 1}: use ids of this very model"
                )
        if options.grammar is None:
            return [None] * count
        end_ids = {*self.runtime.config.eos_token_ids, *options.eos_token_ids}
        first = GRAMMAR_COMPILER.load()(options.grammar, self.tokenizer, end_ids)
        return [first, *(first.copy() for _ in range(count - 1))]

    def _encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any] | str] | None,
        template_options: Mapping[str, Any],
    ) -> list[int]:
        if self.chat_template is None:
            raise TemplateError(
                "this model has no chat template, so it takes no messages: pass plain text, "
                "or put the model's chat_template.jinja beside its tokenizer.json"
            )
        return encode_chat(
            self.tokenizer,
            self.chat_template,
            messages,
            tools=tools,
            options=template_options,
            check=self._check_length,
        )

    def _check_length(self, text: str) -> None:
        """Refuse what would take long to encode, and cannot fit then."""
        context = self.runtime.context_length
        if self.tokenizer.exceeds(text, context):
            raise ContextOverflowError(
                f"the prompt has {len(text):,} characters, which are more tokens than the context "
                f"holds ({context}, the answer included): shorten it, or export with a longer "
                "context"
            )

    def _open(self, rows: Sequence[Sequence[int]], max_new_tokens: int | None) -> Session:
        most = self.runtime.info.capabilities.max_batch_size
        if most and len(rows) > most:
            raise GenerationError(
                f"{len(rows)} prompts at once, and {self.runtime.info.runtime} on "
                f"{self.runtime.info.device} takes {most}: pass them in groups of {most}"
            )
        lengths = [len(row) for row in rows]
        check_room(lengths, max_new_tokens, self.runtime.context_length)
        capacity = None if max_new_tokens is None else max(lengths) + max_new_tokens
        return self.runtime.open(len(rows), capacity)


def _is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    # An empty list counts as ids: every model refuses those in words that fit.
    return isinstance(prompt, Sequence) and all(isinstance(item, Integral) for item in prompt)


def choose_slice(able: Capabilities) -> int | None:
    """Tokens of a prompt to append between two looks at `cancel`; whole chunks, where there are.

    Args:
        able: of the runtime.

    Returns:
        None where prompts cannot be cut.
    """
    if not able.appends_many:
        return None
    chunk = able.chunk or 1
    return max(chunk, _PREFILL_SLICE // chunk * chunk)
