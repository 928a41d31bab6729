"""What each precision costs: KL divergence and perplexity against the torch reference.

    python benchmarks/accuracy.py lfm2_deploy/demo/lfm2-demo-9m EVAL.txt

Windows are spread evenly over the text, each scored from an empty state. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lfm2_deploy
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.tokenizer import Tokenizer

# Precision, and how weights are rounded where that makes a difference.
VARIANTS = (
    ("fp32", None),
    ("fp16", None),
    ("int8", None),
    ("int4", "rtn"),
    ("int4", "search"),
    ("int4", "gptq"),
)


def take_windows(tokenizer: Tokenizer, text: str, count: int, length: int) -> list[list[int]]:
    """`count` rows of `length` tokens, each led by the start token."""
    ids = tokenizer.encode(text, add_special_tokens=True)
    start, body = ids[0], ids[1:]
    step = max(1, (len(body) - length) // max(1, count - 1))
    return [[start, *body[i * step : i * step + length - 1]] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint folder with a tokenizer")
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    tokenizer = Tokenizer.from_folder(Path(args.model))
    text = args.text.read_text(encoding="utf-8")
    rows = take_windows(tokenizer, text, args.windows, args.length)
    print("| precision | size | KL divergence, nats | same top token | perplexity |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for precision, method in VARIANTS:
            place = Path(folder) / f"{precision}-{method}"
            bundle = lfm2_deploy.export(args.model, place, precision=precision, quantize=method)
            result = lfm2_deploy.verify(bundle, checkpoint, rows)
            name = f"{precision}, {method}" if method else precision
            print(
                f"| {name} | {bundle.size_bytes / 1e6:.1f} MB "
                f"| {result.kld:.2g} ± {result.kld_error:.1g} | {result.same_top:.2%} "
                f"| {result.tested_perplexity:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
