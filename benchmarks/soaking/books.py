"""What clients counted against what the server counts, and answers against those known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lfm2_deploy import load
from lfm2_deploy.answers.messages import prepare_messages
from lfm2_deploy.generate import LanguageModel
from soaking.asks import Known
from soaking.client import Outcome

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? ([0-9.e+-]+)$", re.MULTILINE)
# What rounding may move a logit by, in parts of the largest one: floats in another order; or a
# step of 8-bit activations, which prompts appended in other pieces may cross.
ROUNDING = {"float32": 1e-4}
_COARSE = 2e-2


@dataclass(frozen=True, slots=True)
class Counts:
    """A server's own, of /metrics."""

    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    prompt: float = 0
    completion: float = 0

    @classmethod
    def read(cls, text: str) -> Counts:
        """Of the text format."""
        requests, answers, others = Counter[str](), Counter[str](), Counter[str]()
        for name, labels, value in _LINE.findall(text):
            if name == "lfm2_requests_total":
                requests[re.findall(r'code="(\d+)"', labels)[0]] += int(float(value))
            elif name == "lfm2_answers_total":
                answers[re.findall(r'reason="(\w+)"', labels)[0]] += int(float(value))
            else:
                others[name] = int(float(value))
        prompt, completion = (
            others[f"lfm2_{name}_tokens_total"] for name in ("prompt", "completion")
        )
        return cls(requests, answers, prompt, completion)

    def since(self, before: Counts) -> Counts:
        """What was counted in between."""
        return Counts(
            Counter({code: n - before.requests[code] for code, n in self.requests.items()}),
            Counter({why: n - before.answers[why] for why, n in self.answers.items()}),
            self.prompt - before.prompt,
            self.completion - before.completion,
        )


def compare_counts(outcomes: Iterable[Outcome], counted: Counts) -> list[str]:
    """What does not add up.

    A client that leaves does not know what the server made of its request, so of each of those
    one request and its tokens may be counted besides. Where none left, all must agree.
    """
    seen: Counter[str] = Counter()
    unseen = completion = prompt = spare = 0
    for outcome in outcomes:
        if outcome.status is not None:
            seen[str(outcome.status)] += 1
        unseen += outcome.status is None and outcome.reached
        if outcome.usage is None:
            spare += outcome.ask.most_tokens
        else:
            prompt, completion = prompt + outcome.usage[0], completion + outcome.usage[1]
    faults = []
    for code in sorted(seen.keys() | counted.requests.keys()):
        if not 0 <= counted.requests[code] - seen[code] <= unseen:
            faults.append(
                f"{seen[code]} replies of status {code} came, and the server counts "
                f"{counted.requests[code]}"
            )
    surplus = counted.requests.total() - seen.total()
    if not 0 <= surplus <= unseen:
        faults.append(f"{surplus} more requests are counted than {unseen} that were left")
    if not completion <= counted.completion <= completion + spare:
        faults.append(f"{completion} tokens came, and the server counts {counted.completion}")
    if prompt > counted.prompt:
        faults.append(f"{prompt} tokens of prompts were told, and {counted.prompt} are counted")
    return faults


class Answers:
    """The answers that prompts have when nobody else asks."""

    def __init__(self, bundle: str) -> None:
        self._bundle = bundle
        self._model: LanguageModel | None = None
        self.known: dict[int, Outcome] = {}
        self.checked = 0
        self.other: list[tuple[Outcome, float]] = []

    def learn(self, known: Known, outcome: Outcome) -> bool:
        """Keep an answer; false where another prompt has the same, so a mix-up would not show."""
        if any(before.tokens == outcome.tokens for before in self.known.values()):
            return False
        self.known[id(known)] = outcome
        return True

    def check(self, outcome: Outcome) -> None:
        """Compare an answer with the one that is known."""
        if outcome.ask.known is None or outcome.status != 200 or outcome.fault:
            return
        self.checked += 1
        alone = self.known[id(outcome.ask.known)]
        if (outcome.texts, outcome.tokens) == (alone.texts, alone.tokens):
            return
        excess = self._measure(outcome.ask.known, outcome.tokens)
        self.other.append((outcome, excess))
        if excess > 1:
            outcome.fault = (
                f"the answer is {outcome.texts[0][:80]!r}, alone it was {alone.texts[0][:80]!r}; a "
                f"token is {excess:.1f} times as far from the likeliest as rounding explains"
            )

    def _measure(self, known: Known, tokens: Sequence[bytes]) -> float:
        """How far the worst token is below the likeliest, in parts of what rounding may move.

        The model reads prompt and answer here, in this process, and says of every place how
        likely each token was.
        """
        model = self._model = self._model or load(self._bundle)
        by_bytes = {model.tokenizer.token_bytes(i): i for i in range(model.tokenizer.vocab_size)}
        messages = known.body.get("messages")
        prompt = prepare_messages(messages) if messages else known.body["prompt"]
        ids = model.encode_prompt(prompt)
        answer = [by_bytes.get(token, 0) for token in tokens]
        session = model.runtime.open(1, len(ids) + len(answer))
        logits = session.score([ids + answer])[0][len(ids) - 1 : -1]
        gaps = logits.max(1) - logits[np.arange(len(answer)), answer]
        bound = ROUNDING.get(model.runtime.info.arithmetic, _COARSE) * np.abs(logits).max(1)
        return float((gaps / bound).max())
