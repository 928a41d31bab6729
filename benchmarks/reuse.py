"""Time to the first token of a conversation's turns, with and without what earlier ones left.

    lfm2-deploy export synthetic:LFM2-350M /tmp/lfm2-350m
    python benchmarks/reuse.py /tmp/lfm2-350m

A conversation of five turns, 300 tokens of question and 100 of answer each, and then the
last answer once more. Both ways take turns in one process. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.tokens import generate_tokens

QUESTION, ANSWER, TURNS = 300, 100, 5


def answer(runtime: Runtime, ids: list[int], cache: PromptCache | None) -> tuple[float, list[int]]:
    """Seconds before the first token, and the answer."""
    options = GenerationOptions(max_new_tokens=ANSWER, ignore_eos=True)
    if cache is None:
        session = runtime.open(1, len(ids) + ANSWER)
        generation = generate_tokens(session, [ids], options, prefill_slice=512)
        tokens = [event.token_id for event in generation if event.token_id is not None]
        return generation.prefill_seconds, tokens
    with cache.reuse(ids) as (session, start):
        generation = generate_tokens(session, [ids], options, prefill_slice=512, start=start)
        tokens = [event.token_id for event in generation if event.token_id is not None]
    return generation.prefill_seconds, tokens


def converse(runtime: Runtime, cache: PromptCache | None) -> list[float]:
    """Seconds before each turn's first token, and before that of the last one again."""
    numbers = random.Random(0)
    ids: list[int] = []
    seconds = []
    for _ in range(TURNS):
        ids = [*ids, *(numbers.randrange(runtime.config.vocab_size) for _ in range(QUESTION))]
        waited, tokens = answer(runtime, ids, cache)
        seconds.append(waited)
        asked, ids = ids, [*ids, *tokens]
    seconds.append(answer(runtime, asked, cache)[0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    runtime: Runtime = find_runtime(bundle.manifest.runtime)(bundle)
    plain, reusing = [], []
    for _ in range(args.rounds):
        plain.append(converse(runtime, None))
        reusing.append(converse(runtime, PromptCache(runtime)))
    print("| turn | prompt | anew, ms | reusing, ms | ratio |")
    print("|---|---|---|---|---|")
    for turn in range(TURNS + 1):
        before, after = (1000 * statistics.median(r[turn] for r in rs) for rs in (plain, reusing))
        length = QUESTION + min(turn, TURNS - 1) * (QUESTION + ANSWER)
        name = str(turn + 1) if turn < TURNS else "regenerate"
        ratio = f"{before / after:.1f}" if after else "all of it"
        print(f"| {name} | {length} | {before:.0f} | {after:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
