"""`eval` beside lm-evaluation-harness's own Hugging Face backend, on the same weights.

    python benchmarks/evaluation.py MODEL [--precision fp32] [--batch-size 8] [--threads 2]

MODEL is a checkpoint folder with a tokenizer; it is exported to a temporary folder. Told are
figures of both, wall and CPU seconds of both (CPU seconds hold on a busy machine), and the
tokens that were read. Needs lm-eval[hf].
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate as run_harness
from lm_eval.models.huggingface import HFLM

from lfm2_deploy import export, load
from lfm2_deploy.evaluation.harness import evaluate, load_tasks, quiet
from lfm2_deploy.evaluation.result import Evaluation, TaskResult, read_results
from lfm2_deploy.evaluation.settings import Settings

TASKS = ("lfm2_demo_ending", "lfm2_demo_last_word", "lfm2_demo_perplexity")


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, wall seconds, CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def run_hugging_face(backend: HFLM, name: str) -> TaskResult:
    """One task, as the harness runs it."""
    tasks = load_tasks([name])
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    with quiet():
        raw = run_harness(backend, tasks, bootstrap_iters=0, log_samples=False)
    return read_results(raw)[0]


def describe(task: TaskResult) -> str:
    """Its figures in a line."""
    return "  ".join(f"{metric.name} {metric.value:.6g}" for metric in task.metrics)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch-size", type=int, default=8, help="of the Hugging Face backend")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(given.model, Path(folder) / "bundle", precision=given.precision)
        model = load(bundle, threads=given.threads)
        theirs = HFLM(
            pretrained=given.model, dtype="float32", device="cpu", batch_size=given.batch_size
        )
        for name in TASKS:
            tasks = load_tasks([name])
            found: Evaluation
            found, wall, cpu = measure(lambda t=tasks: evaluate(model, "ours", t, Settings()))
            share = f"{found.tokens_read:,} of {found.tokens_asked:,} tokens read"
            print(f"{name}\n  ours          {describe(found.tasks[0])}")
            print(f"                {wall:.1f} s, {cpu:.1f} s of CPU; {share}")
            result, their_wall, their_cpu = measure(lambda n=name: run_hugging_face(theirs, n))
            print(f"  hugging face  {describe(result)}")
            cost = f"{their_wall:.1f} s, {their_cpu:.1f} s of CPU"
            print(f"                {cost}, batch {given.batch_size}")
            print(f"  ratio         {their_cpu / cpu:.2f} in CPU seconds", flush=True)


if __name__ == "__main__":
    main()
