"""Tokens a second of several answers at once, together and one after the other.

    python benchmarks/serving.py BUNDLE [--answers 8] [--tokens 64]

Prints for 1, 2, 4 ... answers: all tokens a second where rows are computed together, where they
are computed one after the other (`EngineLimits.exact_rows`), and the ratio of the two.
"""

from __future__ import annotations

import argparse

from lfm2_deploy.answers.events import Answer
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.registry import find_runtime_of
from lfm2_deploy.serving.engine import Engine, EngineLimits
from lfm2_deploy.tokenizer import Tokenizer

PROMPT = 64


def measure(engine: Engine, answers: int, tokens: int) -> float:
    """All tokens a second of so many answers, from the first token on."""
    prompts = [[5 + (i + 7 * k) % 100 for k in range(PROMPT)] for i in range(answers)]
    options = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    streams = [engine.stream(prompt, **options) for prompt in prompts]
    found: list[Answer] = [stream.answers()[0] for stream in streams]
    return sum(len(answer.token_ids) for answer in found) / max(
        answer.usage.decode_seconds for answer in found
    )


def make_engine(bundle: str, answers: int, exact: bool) -> Engine:
    """An engine over a bundle that may lack a tokenizer: prompts are token ids."""
    opened = open_bundle(bundle)
    model = LanguageModel(find_runtime_of(opened, None)(opened), Tokenizer.from_folder(DEMO_MODEL))
    return Engine(model, EngineLimits(running=answers, exact_rows=exact))


def main() -> None:
    """Measure in turns, so that what else the machine does falls on both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    counts = [1 << i for i in range(given.answers.bit_length()) if 1 << i <= given.answers]
    together = make_engine(given.bundle, given.answers, exact=False)
    apart = make_engine(given.bundle, given.answers, exact=True)
    print("answers  together tok/s  apart tok/s  ratio")
    for count in counts:
        best = {
            engine: max(measure(engine, count, given.tokens) for _ in range(given.rounds))
            for engine in (together, apart)
        }
        a, b = best[together], best[apart]
        print(f"{count:7}  {a:14.1f}  {b:11.1f}  {a / b:5.2f}", flush=True)
    together.close()
    apart.close()


if __name__ == "__main__":
    main()
