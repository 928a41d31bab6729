"""int4 beside other tools' int4: KL divergence to the float32 model, at what size.

    python benchmarks/quantization.py lfm2_deploy/demo/lfm2-demo-9m EVAL.txt --work /tmp/int4 \\
        --nncf-python /tmp/nncf/bin/python --calibrate TRAIN.txt

Makes every candidate below and scores it by llama.cpp's protocol: 64 windows of 512 tokens,
spread evenly over the text, each from an empty state; the second half of each counts. Prints
a Markdown table. onnxruntime-genai must be installed for its rows; nncf lies in an
environment of its own (`nncf_compress.py` says how to make one). Rows that cannot be made are
left out, and said. Our methods calibrate on the text that is built in, or on `--own-text`.

Sizes are those of graphs and weights files as they lie on the disk, without tokenizer and
configuration; "weights" are bytes of what replaces the checkpoint's tensors alone: levels,
scales, zero points and floats, the embedding and head included, without tables of angles and
what graphs are written in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import take_windows
from quantization_candidates import Candidate, list_candidates

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.metrics import log_softmax
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.tokenizer import Tokenizer

Score = Callable[[Sequence[int]], FloatArray]


@dataclass(frozen=True, slots=True)
class Figures:
    """How far a candidate is from the reference, over all scored positions."""

    kld: float
    kld_error: float
    same_top: float
    perplexity: float


class Protocol:
    """The reference's log-probabilities, and what others are against them.

    Args:
        rows: windows of equal length.
        load: loads the reference.
        folder: where its answers are kept.
    """

    def __init__(self, rows: list[list[int]], load: Callable[[], Score], folder: Path) -> None:
        self.rows = rows
        # Positions whose next token is known, from the middle on: llama.cpp's choice.
        self.part = slice(len(rows[0]) // 2, len(rows[0]) - 1)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"reference-{hashlib.sha256(str(rows).encode()).hexdigest()[:16]}.npy"
        if not file.exists():
            score = load()
            answers = [log_softmax(score(row)[self.part]).astype(np.float32) for row in rows]
            np.save(file, np.stack(answers))
        self.references = np.load(file, mmap_mode="r")

    def measure(self, score: Score) -> Figures:
        """Score every window."""
        klds, same, losses = [], [], []
        for row, reference in zip(self.rows, self.references, strict=True):
            tested = log_softmax(score(row)[self.part])
            klds += (np.exp(reference) * (reference - tested)).sum(-1).tolist()
            same += (reference.argmax(-1) == tested.argmax(-1)).tolist()
            targets = np.array(row[self.part.start + 1 : self.part.stop + 1])
            losses += (-np.take_along_axis(tested, targets[:, None], -1)[:, 0]).tolist()
        error = float(np.std(klds, ddof=1) / math.sqrt(len(klds)))
        return Figures(
            float(np.mean(klds)), error, float(np.mean(same)), math.exp(float(np.mean(losses)))
        )


def load_reference(model: str) -> Score:
    """The torch decoder in float32."""
    reference = find_runtime("reference")(open_checkpoint(model))
    return lambda row: reference.open(1, len(row)).score([row])[0]


def print_row(candidate: Candidate, figures: Figures, size: int, weights: int) -> None:
    print(
        f"| {candidate.name} | {size / 1e6:.2f} | {weights / 1e6:.2f} "
        f"| {figures.kld:.4f} ± {figures.kld_error:.4f} | {figures.same_top:.2%} "
        f"| {figures.perplexity:.3f} |",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint folder with a tokenizer")
    parser.add_argument("text", type=Path, help="that the model was not trained on")
    parser.add_argument("--work", type=Path, required=True, help="where candidates are made")
    parser.add_argument(
        "--calibrate", type=Path, help="a text for nncf's methods that look at data"
    )
    parser.add_argument("--own-text", type=Path, help="a text for ours, instead of the built-in")
    parser.add_argument("--nncf-python", help="interpreter of an environment with nncf")
    parser.add_argument("--only", default="", help="regular expression that names must match")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    return parser.parse_args()


def main() -> None:
    args = parse()
    tokenizer = Tokenizer.from_folder(Path(args.model))
    rows = take_windows(tokenizer, args.text.read_text(encoding="utf-8"), args.windows, args.length)
    protocol = Protocol(rows, lambda: load_reference(args.model), args.work)
    print("| int4 of | files, MB | weights, MB | KL divergence, nats | same top | perplexity |")
    print("|---|---|---|---|---|---|")
    record = {}
    for candidate in list_candidates(
        args.model, args.work, args.nncf_python, args.calibrate, args.own_text
    ):
        if not re.search(args.only, candidate.name):
            continue
        try:
            made = candidate.make()
        except (Lfm2DeployError, ImportError, OSError, RuntimeError) as error:
            print(f"| {candidate.name} | not made: {str(error)[:200]} | | | | |", flush=True)
            continue
        figures = protocol.measure(made.score)
        print_row(candidate, figures, made.size_bytes, made.weights_bytes)
        record[candidate.name] = [figures.kld, figures.kld_error, made.size_bytes]
    if args.json:
        args.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
