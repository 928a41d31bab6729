"""What looking ahead (prompt lookup) gains or costs: speed over plain decoding.

    lfm2-deploy export synthetic:LFM2-350M /tmp/lfm2-350m
    python benchmarks/speculation.py /tmp/lfm2-350m

Random weights do not repeat what they read, so the text is given: a sampler that says it,
token by token, in the place of the model's own choice (teacher forcing). All the work is
that of generation; only the choice is not. Three texts: one that repeats its prompt, as when
code is edited; one without repetition; and one made to deceive, in which every pair of
tokens was seen before and goes on otherwise. Plain and looking ahead take turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from unittest import mock

from lfm2_deploy import tokens
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.contracts import FloatArray, Runtime
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.tokens import generate_tokens

LENGTH = 192


class Script:
    """A sampler that says a given text."""

    def __init__(self, text: list[int]) -> None:
        self.rest = iter(text)

    def sample(self, logits: FloatArray) -> int:
        """The next token, after looking at the logits as greedy choice does."""
        logits.argmax()
        return next(self.rest)


def make_texts(vocab_size: int) -> dict[str, tuple[list[int], list[int]]]:
    """Kind -> prompt and answer."""
    numbers = random.Random(0)

    def draw(count: int) -> list[int]:
        return [numbers.randrange(10, vocab_size) for _ in range(count)]

    passage = draw(LENGTH)
    edited = [*passage]
    for place in range(15, LENGTH, 32):  # a word changed now and then
        edited[place] = numbers.randrange(10, vocab_size)
    pairs = [draw(2) for _ in range(16)]
    deceiving = [
        token for _ in range(2 * LENGTH // 3) for token in (*numbers.choice(pairs), *draw(1))
    ]
    return {
        "repeats its prompt": (passage, passage),
        "repeats it with edits": (passage, edited),
        "does not repeat": (draw(LENGTH), draw(LENGTH)),
        "deceives": (deceiving[:LENGTH], deceiving[LENGTH : 2 * LENGTH]),
    }


def run(runtime: Runtime, prompt: list[int], answer: list[int], guesses: int) -> float:
    """Seconds of decoding the answer."""
    session = runtime.open(1, len(prompt) + len(answer) + 1)
    options = GenerationOptions(max_new_tokens=len(answer), ignore_eos=True)
    with mock.patch.object(tokens, "Sampler", return_value=Script(answer)):
        generation = generate_tokens(session, [prompt], options, most_guesses=guesses)
    said = [event.token_id for event in generation]
    assert said == answer
    return generation.decode_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    runtime: Runtime = find_runtime(bundle.manifest.runtime)(bundle)
    guesses = runtime.info.capabilities.max_proposal - 1
    print("| text | plain tok/s | ahead tok/s | ratio, median of rounds | lowest |")
    print("|---|---|---|---|---|")
    for kind, (prompt, answer) in make_texts(bundle.config.vocab_size).items():
        plain, ahead = [], []
        for _ in range(args.rounds):
            plain.append(run(runtime, prompt, answer, 0))
            ahead.append(run(runtime, prompt, answer, guesses))
        ratios = [a / b for a, b in zip(plain, ahead, strict=True)]
        rates = [len(answer) / min(seconds) for seconds in (plain, ahead)]
        print(
            f"| {kind} | {rates[0]:.1f} | {rates[1]:.1f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} |",
            flush=True,
        )
        time.sleep(0.5)


if __name__ == "__main__":
    main()
