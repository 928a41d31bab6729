"""Speed and memory beside other engines, one run, in turns.

    lfm2-deploy export synthetic:LFM2-350M /tmp/ours
    python benchmarks/write_checkpoint.py synthetic:LFM2-350M /tmp/hf --tokenizer DIR
    python -m onnxruntime_genai.models.builder -m /tmp/hf -i /tmp/hf -o /tmp/genai -p int4 -e cpu
    python convert_hf_to_gguf.py /tmp/hf --outfile /tmp/bf16.gguf --outtype bf16
    llama-quantize /tmp/bf16.gguf /tmp/q4_0.gguf Q4_0
    python benchmarks/peers.py /tmp/ours --genai /tmp/genai \\
        --llama-bench BUILD/bin/llama-bench --gguf /tmp/q4_0.gguf

For OpenVINO, with optimum-intel in an environment of its own (it wants transformers 5.4):

    lfm2-deploy export synthetic:LFM2-350M /tmp/ours-ov --target openvino-cpu
    optimum-cli export openvino -m /tmp/hf --task text-generation-with-past \\
        --weight-format int4 /tmp/optimum
    python benchmarks/peers.py /tmp/ours-ov --openvino-genai /tmp/optimum

Every engine reads its own file of the same checkpoint. Each measurement is a process of
its own, so none disturbs another's memory; rounds go through all engines in turns, so
that ratios hold even where clocks wander. The best of the rounds counts. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lfm2_deploy.bandwidth import measure_bandwidth
from lfm2_deploy.telemetry import switch_off_openvino

# Prefill and decode, tokens a second; most memory, bytes.
Figures = dict[str, float]


def measure_ours(bundle: str, prompt: int, decode: int, rounds: int) -> Figures:
    """A bundle of ours."""
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.registry import find_runtime

    opened = open_bundle(bundle)
    runtime = find_runtime(opened.manifest.runtime)(opened)
    ids = make_prompt(prompt)
    prefills, decodes = [], []
    for _ in range(rounds):
        session = runtime.open(1, prompt + decode)
        started = time.perf_counter()
        token = int(session.prefill([ids])[0].argmax())
        prefilled = time.perf_counter()
        for _ in range(decode):
            token = int(session.decode([token])[0].argmax())
        prefills.append(prompt / (prefilled - started))
        decodes.append(decode / (time.perf_counter() - prefilled))
    return {"prefill": max(prefills), "decode": max(decodes), "peak": peak_memory()}


def measure_genai(folder: str, prompt: int, decode: int, rounds: int) -> Figures:
    """onnxruntime-genai on a folder its own builder made."""
    import onnxruntime_genai as og

    model = og.Model(folder)
    ids = make_prompt(prompt)
    prefills, decodes = [], []
    for _ in range(rounds):
        parameters = og.GeneratorParams(model)
        total = prompt + decode + 1
        parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, parameters)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        prefilled = time.perf_counter()
        for _ in range(decode):
            generator.generate_next_token()
        prefills.append(prompt / (prefilled - started))
        decodes.append(decode / (time.perf_counter() - prefilled))
    return {"prefill": max(prefills), "decode": max(decodes), "peak": peak_memory()}


def measure_openvino_genai(folder: str, prompt: int, decode: int, rounds: int) -> Figures:
    """openvino-genai on optimum-intel's folder, as it comes."""
    import numpy as np

    switch_off_openvino()
    import openvino as ov
    import openvino_genai as og

    pipeline = og.LLMPipeline(folder, "CPU")
    config = og.GenerationConfig(max_new_tokens=decode + 1, ignore_eos=True)
    config.do_sample = False
    prefills, decodes = [], []
    for seed in range(rounds):
        # Another prompt each time: it keeps what it has seen.
        ids = ov.Tensor(np.array([make_prompt(prompt, seed)], np.int64))
        inputs = og.TokenizedInputs(ids, ov.Tensor(np.ones((1, prompt), np.int64)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        prefills.append(prompt / metrics.get_ttft().mean * 1000)
        decodes.append(1000 / metrics.get_tpot().mean)
    return {"prefill": max(prefills), "decode": max(decodes), "peak": peak_memory()}


def measure_llama(program: str, gguf: str, prompt: int, decode: int, rounds: int) -> Figures:
    """llama.cpp's own benchmark."""
    words = [program, "-m", gguf, "-t", str(os.cpu_count()), "-p", str(prompt), "-n", str(decode)]
    done = subprocess.run(
        [*words, "-r", str(rounds), "-o", "json"], capture_output=True, check=True, text=True
    )
    figures: Figures = {}
    for test in json.loads(done.stdout):
        figures["prefill" if test["n_prompt"] else "decode"] = max(test["samples_ts"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {**figures, "peak": float(peak)}


MEASURES: dict[str, Callable[..., Figures]] = {
    "lfm2-deploy": measure_ours,
    "onnxruntime-genai": measure_genai,
    "openvino-genai": measure_openvino_genai,
    "llama.cpp": measure_llama,
}


def make_prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens below the smallest vocabulary of the family."""
    numbers = random.Random(seed)
    return [numbers.randrange(10, 60_000) for _ in range(length)]


def peak_memory() -> float:
    """Most bytes this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run_apart(name: str, arguments: list[object]) -> Figures:
    """One measurement in a process of its own."""
    words = [sys.executable, __file__, "--worker", json.dumps([name, *arguments])]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def take_best(results: list[Figures]) -> Figures:
    """The best of several rounds; of memory, the most."""
    return {key: max(result[key] for result in results) for key in results[0]}


def print_results(results: dict[str, Figures]) -> None:
    """A table, with ratios to ours."""
    ours = results["lfm2-deploy"]
    print("| engine | prefill tok/s | decode tok/s | ours / theirs | most memory |")
    print("|---|---|---|---|---|")
    for name, own in results.items():
        ratios = [ours[key] / own[key] for key in ("prefill", "decode")]
        ratio = "" if own is ours else f"{ratios[0]:.2f} / {ratios[1]:.2f}"
        print(
            f"| {name} | {own['prefill']:.0f} | {own['decode']:.1f} | {ratio} "
            f"| {own['peak'] / 1e9:.2f} GB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--genai", help="folder of onnxruntime-genai's builder")
    parser.add_argument("--openvino-genai", help="folder of optimum-intel's")
    parser.add_argument("--llama-bench", help="llama.cpp's program")
    parser.add_argument("--gguf", help="file for llama.cpp")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns through all engines")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions in each turn")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, *arguments = json.loads(args.worker)
        print(json.dumps(MEASURES[name](*arguments)))
        return
    engines: dict[str, list[object]] = {"lfm2-deploy": [args.bundle]}
    if args.genai:
        engines["onnxruntime-genai"] = [args.genai]
    if args.openvino_genai:
        engines["openvino-genai"] = [args.openvino_genai]
    if args.llama_bench and args.gguf:
        engines["llama.cpp"] = [args.llama_bench, args.gguf]
    sizes = [args.prompt, args.decode, args.repeats]
    turns = [
        {name: run_apart(name, [*own, *sizes]) for name, own in engines.items()}
        for _ in range(args.rounds)
    ]
    results = {name: take_best([turn[name] for turn in turns]) for name in engines}
    print_results(results)
    bandwidth = measure_bandwidth(os.cpu_count() or 1)
    print(f"\nread bandwidth {bandwidth / 1e9:.1f} GB/s, {os.cpu_count()} cores")
    if args.json:
        record = {"bandwidth": bandwidth, "turns": turns, "best": results}
        args.json.write_text(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
