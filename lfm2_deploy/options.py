"""What a generation request may ask for.

Enters: generation_config.json and the caller's wishes. Leaves: one checked, frozen
`GenerationOptions`. Knows nothing of how they are carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from lfm2_deploy.errors import GenerationError
from lfm2_deploy.grammar import Grammar
from lfm2_deploy.sampling import SamplingOptions, is_count
from lfm2_deploy.words import suggest


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How long to generate, how to choose, and where to stop.

    Args:
        max_new_tokens: most tokens to generate; None means what the context allows.
        sampling: how to choose each token.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer, even with `ignore_eos`.
        eos_token_ids: end-of-turn tokens besides those of the model's config.
        ignore_eos: go on after end-of-turn tokens.
        logprobs: None for none; else how many likeliest tokens to list beside the
            chosen one, at every step.
        prompt_lookup_num_tokens: most tokens to look ahead where text repeats what came
            before (Hugging Face's name); the answer is the same, and may come faster. 0 is off.
        skip_special_tokens: leave tokens such as <|tool_call_start|> out of the text.
        grammar: what the answer must follow; it is whole unless `max_new_tokens`, a stop string
            or a stop token cuts it.

    Raises:
        GenerationError: a value is out of range.
    """

    max_new_tokens: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_lookup_num_tokens: int = 0
    skip_special_tokens: bool = True
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        if limit is not None and (not is_count(limit) or limit == 0):
            raise GenerationError(f"max_new_tokens is {limit!r}, expected an integer from 1")
        if self.logprobs is not None and not is_count(self.logprobs):
            raise GenerationError(f"logprobs is {self.logprobs!r}, expected an integer from 0")
        if not is_count(self.prompt_lookup_num_tokens):
            raise GenerationError(
                f"prompt_lookup_num_tokens is {self.prompt_lookup_num_tokens!r}, expected an "
                "integer from 0 (off)"
            )
        if not _is_tuple_of(self.stop, lambda stop: isinstance(stop, str) and stop != ""):
            raise GenerationError(f"stop is {self.stop!r}, expected strings, none of them empty")
        for name in ("stop_token_ids", "eos_token_ids"):
            if not _is_tuple_of(getattr(self, name), is_count):
                raise GenerationError(f"{name} is {getattr(self, name)!r}, expected token ids")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise GenerationError(
                f"grammar is {self.grammar!r}, expected a Grammar, such as Grammar.json()"
            )

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> GenerationOptions:
        """Read the JSON object of a generation_config.json.

        `do_sample` false is greedy. Where it is absent, a `temperature` means sampling.
        A filter that is absent is off (transformers would set top_k to 50).

        Args:
            raw: the object; keys that are no `GenerationOptions` are ignored.

        Raises:
            GenerationError: a value is out of range.
        """
        names = ("max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty")
        changes = {name: raw.get(name) for name in names}
        sampled = raw.get("do_sample")
        if sampled is None:
            sampled = raw.get("temperature") is not None
        temperature = raw.get("temperature")
        changes["temperature"] = (1.0 if temperature is None else temperature) if sampled else 0.0
        return cls().with_overrides(
            **changes, stop=raw.get("stop_strings"), eos_token_ids=raw.get("eos_token_id")
        )

    def with_overrides(self, **changes: Any) -> GenerationOptions:
        """These options with the caller's own put over them.

        Args:
            **changes: any field of `GenerationOptions` or `SamplingOptions`. None keeps
                what is here; `stop` and the id lists may also be one value or a list, and
                `logit_bias` a mapping.

        Raises:
            GenerationError: a name is unknown or a value out of range.
        """
        own = {f.name for f in fields(GenerationOptions)}
        of_sampling = {f.name for f in fields(SamplingOptions)}
        unknown = sorted(set(changes) - own - of_sampling)
        if unknown:
            known = sorted((own | of_sampling) - {"sampling"})
            near = suggest(unknown[0], known) or ":"
            raise GenerationError(
                f"no generation option '{unknown[0]}'{near} choose among {', '.join(known)}"
            )
        given = {name: value for name, value in changes.items() if value is not None}
        for name in given.keys() & {"stop", "stop_token_ids", "eos_token_ids"}:
            given[name] = _as_tuple(given[name])
        if isinstance(bias := given.get("logit_bias"), Mapping):
            given["logit_bias"] = tuple(bias.items())
        sampling = given.pop("sampling", self.sampling)
        sampling = replace(sampling, **{n: given.pop(n) for n in of_sampling & given.keys()})
        return replace(self, sampling=sampling, **given)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    single = isinstance(value, str) or not isinstance(value, Iterable)
    return (value,) if single else tuple(value)


def _is_tuple_of(value: object, accepts: Callable[[object], bool]) -> bool:
    return isinstance(value, tuple) and all(accepts(item) for item in value)
