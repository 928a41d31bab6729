"""Compare an old onnxruntime-genai with our CPU runtime, on bundles exported for it.

    python scripts/check_genai_legacy.py record TOKENS.json BUNDLE...    in our environment
    python scripts/check_genai_legacy.py check TOKENS.json BUNDLE...     in the old one

onnxruntime-genai 0.14 has an environment of its own, with onnxruntime 1.26 as well as a new one:
it shares its import name with 0.18, and our runtime needs onnxruntime 1.32. So what we generate is
recorded in one, and compared in the other, which needs numpy and genai and nothing of ours.

Each bundle was exported with `--io genai-legacy`. genai generates greedily after a prompt that it
is given at once, then reads the same prompt in pieces and our tokens one by one. In floats all
tokens must be ours. In integers, which old versions multiply with other roundings, a token may be
another where ours was nearly as likely. Exits with 1 on a difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_LENGTH, COUNT = 12, 48
# Where a prompt is cut: one token, then several at once to a state that is not empty.
PIECES = (1, 6, 12)
# As a share of the largest logit, how much less likely a token may be that is taken in place of
# ours: activations rounded to 8 bits move one by as much as 0.01 (tests/test_exactness.py), and
# the two that are compared can move apart.
TOLERANCES = {"fp32": 0.0, "fp16": 0.0, "int8": 2e-2, "int4": 2e-2}


def record(file: Path, bundles: Sequence[Path]) -> None:
    """Write what our runtime generates, and how likely each choice was."""
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.registry import find_runtime

    found = {}
    for path in bundles:
        bundle = open_bundle(path)
        generator = np.random.default_rng(0)
        prompt = generator.integers(8, bundle.config.vocab_size, PROMPT_LENGTH).tolist()
        session = find_runtime("ort")(bundle).open(1, PROMPT_LENGTH + COUNT)
        logits, tokens, all_logits = session.prefill([prompt])[0], [], []
        ends = list(bundle.config.eos_token_ids)
        for _ in range(COUNT):
            logits[ends] = logits.min()  # as genai does below a minimum length
            all_logits.append((logits / np.abs(logits).max()).round(5).tolist())
            tokens.append(int(logits.argmax()))
            logits = session.decode([tokens[-1]])[0]
        precision = bundle.manifest.precision
        found[path.name] = {
            "precision": precision, "prompt": prompt, "tokens": tokens, "logits": all_logits,
            "ends": ends,
        }  # fmt: skip
    file.write_text(json.dumps(found), encoding="utf-8")


def generate(og: Any, model: Any, prompt: Sequence[int]) -> list[int]:
    """Greedy tokens as a user of genai has them; a minimum length keeps it from ending."""
    generator = make_generator(og, model)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


def follow(og: Any, model: Any, recorded: dict[str, Any]) -> list[int]:
    """The likeliest token after the prompt in pieces, and after each of our tokens."""
    generator, prompt = make_generator(og, model), recorded["prompt"]
    for start, end in zip((0, *PIECES), PIECES, strict=False):
        generator.append_tokens(np.array(prompt[start:end], np.int32))
    chosen = []
    for token in recorded["tokens"]:
        logits = np.array(generator.get_logits()).reshape(-1)
        logits[recorded["ends"]] = logits.min()
        chosen.append(int(logits.argmax()))
        generator.append_tokens(np.array([token], np.int32))
    return chosen


def make_generator(og: Any, model: Any) -> Any:
    """A generator of one row that chooses the likeliest token, whatever the bundle recommends."""
    parameters = og.GeneratorParams(model)
    length = PROMPT_LENGTH + COUNT
    parameters.set_search_options(
        max_length=length, min_length=length, do_sample=False, repetition_penalty=1.0
    )
    return og.Generator(model, parameters)


def check(og: Any, path: Path, recorded: dict[str, Any]) -> bool:
    """Whether genai says what we do; prints a line."""
    model = og.Model(str(path))
    ours, precision = recorded["tokens"], recorded["precision"]
    written = generate(og, model, recorded["prompt"])
    equal = next((i for i, (a, b) in enumerate(zip(written, ours, strict=True)) if a != b), COUNT)
    chosen = follow(og, model, recorded)
    lost = max(
        row[own] - row[other]
        for row, own, other in zip(recorded["logits"], ours, chosen, strict=True)
    )
    tolerance = TOLERANCES[precision]
    agrees = lost <= tolerance and (equal == COUNT or tolerance > 0)
    same = sum(a == b for a, b in zip(chosen, ours, strict=True))
    print(
        f"{'OK' if agrees else 'DIFFERENT'}: {path.name} {precision}: the first {equal} of {COUNT} "
        f"greedy tokens are ours; after our tokens, {same} of {COUNT}, by {lost:.1e} at most"
    )
    return agrees


def main() -> int:
    """Record or check every bundle; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["record", "check"])
    parser.add_argument("tokens", type=Path, metavar="TOKENS.json")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    given = parser.parse_args()
    if given.what == "record":
        record(given.tokens, given.bundles)
        return 0
    import onnxruntime as ort
    import onnxruntime_genai as og

    print(f"onnxruntime-genai {og.__version__}, onnxruntime {ort.__version__}")
    recorded = json.loads(given.tokens.read_text(encoding="utf-8"))
    agree = [check(og, path, recorded[path.name]) for path in given.bundles]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
