"""A model of ours as lm-evaluation-harness sees models.

Enters: a `LanguageModel`. Leaves: what the harness's `TemplateLM` asks for. Prompts are
split into tokens, cut and continued as by the harness's own Hugging Face backend, so that
scores compare; nothing here knows a backend of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import EvaluationError, TemplateError
from lfm2_deploy.evaluation.scoring import Effort, Pair, Score, score_pairs
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.prompt_cache import PromptCache

# What the harness's Hugging Face backend generates where a task does not say.
_DEFAULT_NEW_TOKENS = 256
# Settings of a task's `generation_kwargs` that are options here, by the same name.
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
# Those that say what is done here in any case.
_HARMLESS: Mapping[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
_HANDLED = {"do_sample", "temperature", "until", "max_gen_toks", *_SAMPLING}


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the library has no types
    """A `TemplateLM` over a `LanguageModel`."""

    def __init__(
        self, model: LanguageModel, name: str, batch_size: int, progress: Progress, seed: int = 0
    ) -> None:
        """Wrap a model.

        Args:
            model: the loaded bundle.
            name: what to call its tokenizer in records.
            batch_size: rows that generate together.
            progress: told of each request.
            seed: of sampling, where a task asks for it.
        """
        super().__init__()
        self._model, self._name, self._batch_size = model, name, batch_size
        self._progress, self._seed = progress, seed
        self._truncated = 0
        self._requests = 0
        self._without_system = False
        self.effort = Effort()

    @property
    def max_length(self) -> int:
        """Most tokens of context."""
        return self._model.runtime.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends an answer."""
        return self._model.runtime.config.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the start token."""
        start = self._model.tokenizer.encode("", add_special_tokens=True)
        named = self._model.runtime.config.bos_token_id
        return start[0] if start else self.eot_token_id if named is None else named

    @property
    def tokenizer_name(self) -> str:
        """Tells the harness's records of one model from those of another."""
        return self._name

    @property
    def notes(self) -> list[str]:
        """What the reader of the results should know."""
        notes = []
        if self._truncated:
            notes.append(
                f"{self._truncated:,} of {self._requests:,} requests were longer than the context "
                f"of {self.max_length:,} tokens and lost their beginning"
            )
        if self._without_system:
            notes.append("the chat template takes no system message: it was left out")
        return notes

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the harness's records."""
        found = self._model.chat_template
        return found.source if chat_template and found is not None else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as text; without the generation prompt, its last message is left open."""
        try:
            return self._render(chat_history, add_generation_prompt)
        except TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            self._without_system = True
            return self._render(others, add_generation_prompt)

    def _render(self, messages: Sequence[Mapping[str, str]], opens: bool) -> str:
        template = self._model.chat_template
        if template is None:
            raise TemplateError(
                f"{self._name} has no chat template: leave --chat-template out, as for base models"
            )
        text = template.render(messages, add_generation_prompt=opens)
        if opens:
            return text
        # As transformers' continue_final_message: what the template adds after it is cut off.
        last = messages[-1]["content"]
        begin = text.rindex(last.strip())
        whole = last.lstrip()
        kept = whole if text[begin : begin + len(whole)] == whole else last.strip()
        return text[: begin + len(kept)]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; the start token is put in front unless the text begins with it."""
        if add_special_tokens is None:
            start = self._model.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (start and string.startswith(start))
        return self._model.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """How likely continuations are; see the harness's `LM.loglikelihood`."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        return [(score.logprob, score.greedy) for score in self._score(pairs)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """How likely whole texts are, each token scored once; see `LM.loglikelihood_rolling`."""
        windows = [self._cut_windows(request.args[0]) for request in requests]
        scores = iter(self._score([pair for pairs in windows for pair in pairs]))
        return [sum(score.logprob for score in islice(scores, len(pairs))) for pairs in windows]

    def _cut_windows(self, text: str) -> list[Pair]:
        windows = get_rolling_token_windows(
            # The start token is scored too, as in the Hugging Face backend.
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [self._cut(*make_disjoint_window(window)) for window in windows]

    def _score(self, pairs: Sequence[Pair]) -> list[Score]:
        advance = self._count("scoring", len(pairs))
        scores, effort = score_pairs(self._model.runtime, pairs, advance)
        self.effort = Effort(self.effort.asked + effort.asked, self.effort.read + effort.read)
        return scores

    def _count(self, what: str, total: int) -> Callable[[int], None]:
        done = 0
        self._requests += total
        self._progress(what, 0, total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(what, done, total)

        return advance

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        """The pair, without the beginning of what does not fit."""
        room = self.max_length + 1 - len(continuation)  # the last token is not read
        if room < 1:
            raise EvaluationError(
                f"a continuation has {len(continuation):,} tokens, and the context holds "
                f"{self.max_length:,}: export with a longer one (--context)"
            )
        self._truncated += len(context) > room
        return Pair(tuple(context[-room:]), tuple(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continue prompts; see the harness's `LM.generate_until`."""
        prompts = [self._prepare(*request.args) for request in requests]
        # Alike next to alike: rows of a batch share their options, and prompts their beginning.
        key = [json.dumps(request.args[1], sort_keys=True) for request in requests]
        order = sorted(range(len(prompts)), key=lambda i: (key[i], prompts[i][0]))
        advance = self._count("generating", len(prompts))
        answers = dict.fromkeys(order, "")
        cache = PromptCache(self._model.runtime)
        while order:
            same = [i for i in order[: self._batch_size] if key[i] == key[order[0]]]
            order = order[len(same) :]
            texts = self._generate([prompts[i] for i in same], cache)
            for i, text in zip(same, texts, strict=True):
                until = normalize_gen_kwargs(requests[i].args[1])["until"]
                answers[i] = postprocess_generated_text(text, until, None)
            advance(len(same))
        return [answers[i] for i in range(len(prompts))]

    def _generate(
        self, prompts: Sequence[tuple[list[int], GenerationOptions]], cache: PromptCache
    ) -> list[str]:
        rows, options = [ids for ids, _ in prompts], prompts[0][1]
        if options.sampling.temperature:
            self._seed += 1  # the same prompt again is to give another sample
            options = options.with_overrides(seed=self._seed)
        if len(rows) == 1:
            return [self._model.generate(rows[0], options, cache=cache).text]
        return [answer.text for answer in self._model.generate_batch(rows, options)]

    def _prepare(
        self, context: str, settings: Mapping[str, Any]
    ) -> tuple[list[int], GenerationOptions]:
        """Token ids of a prompt, cut to leave room for the answer, and how to answer."""
        options = self._read_settings(settings)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        asked = options.max_new_tokens or _DEFAULT_NEW_TOKENS
        room = self.max_length - asked
        if room < 1:
            raise EvaluationError(
                f"the task generates {asked:,} tokens, and the context holds {self.max_length:,}, "
                "the prompt included: export with a longer one (--context)"
            )
        self._truncated += len(ids) > room
        return ids[-room:], options

    def _read_settings(self, settings: Mapping[str, Any]) -> GenerationOptions:
        """A task's `generation_kwargs`, over the model's own defaults."""
        given = normalize_gen_kwargs(dict(settings), _DEFAULT_NEW_TOKENS)
        for name in sorted(given.keys() - _HANDLED):
            if given[name] is not None and _HARMLESS.get(name) != given[name]:
                known = ", ".join(sorted(_HANDLED))
                raise EvaluationError(
                    f"the task generates with {name}={given[name]!r}, which is not offered here: "
                    f"known are {known}"
                )
        stops = [stop for stop in given["until"] if stop]
        special = self._model.tokenizer.special_ids
        ids = [self._model.tokenizer.token_id(stop) for stop in stops]
        defaults = self._model.defaults
        return defaults.with_overrides(
            max_new_tokens=given["max_gen_toks"],
            temperature=float(given.get("temperature", 1.0)) if given["do_sample"] else 0.0,
            stop=tuple(stops),
            stop_token_ids=(*defaults.stop_token_ids, *(i for i in ids if i in special)),
            **{name: given.get(name) for name in _SAMPLING},
        )
