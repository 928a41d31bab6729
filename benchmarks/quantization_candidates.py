"""What `quantization.py` compares: how each candidate is made, measured in bytes and run."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lfm2_deploy
from exporters.options import ExportOptions
from exporters.pipeline import export_checkpoint
from exporters.quantize.budget import Unit, choose
from exporters.quantize.sensitivity import fit_rows, measure_costs
from exporters.quantize.units import list_units
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.calibration_text import choose_text
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import FloatArray, ignore_progress
from lfm2_deploy.registry import find_runtime, find_target
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.weights import list_weights

HERE = Path(__file__).parent
_TRIES = 3
# Rows that nncf's data-aware methods see.
CALIBRATION_ROWS, CALIBRATION_LENGTH = 32, 256
# What is stored beside the checkpoint's tensors: tables of angles, and the zeros that the
# builder gives experts for biases.
_BESIDE = re.compile(r"(cos_cache|sin_cache|rope\.(cos|sin))$|experts\.\w+\.bias$")


@dataclass(frozen=True, slots=True)
class Made:
    """A candidate on the disk, loaded.

    Args:
        size_bytes: graphs and weights files.
        weights_bytes: what replaces the checkpoint's tensors.
        score: ids -> logits float32 [S, V] of one row from an empty state.
    """

    size_bytes: int
    weights_bytes: int
    score: Callable[[Sequence[int]], FloatArray]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row of the table, not made yet."""

    name: str
    make: Callable[[], Made]


def list_candidates(
    model: str, work: Path, nncf_python: str | None, text: Path | None, own_text: Path | None
) -> Iterator[Candidate]:
    """Other tools' and ours, in the order of the table; ours of a size come after what sets it.

    Args:
        model: the checkpoint's folder.
        work: where candidates are made.
        nncf_python: an interpreter that has nncf; None leaves its rows out.
        text: what nncf's methods see that look at data.
        own_text: what ours see; None for the text that is built in.
    """
    work.mkdir(parents=True, exist_ok=True)
    for method in (None, BEST):
        words, options = _name("cpu int8", method, own_text)
        yield Candidate(f"ours, {words}", partial(make_ours, model, work, words, options))
    for method in METHODS:
        words, options = _name("cpu int4", method, own_text)
        yield Candidate(f"ours, {words}", partial(make_ours, model, work, words, options))
    for name, options in GENAI.items():
        peer = partial(make_genai, model, work, f"onnxruntime-genai, {name}", options)
        yield Candidate(f"onnxruntime-genai, {name}", peer)
        for method in ("search", BEST):
            make = partial(make_no_larger, model, work, "cpu", method, peer, own_text)
            yield Candidate(f"ours, cpu, {method}, within the size of {name}", make)
    if nncf_python is None:
        return
    for name, words in NNCF.items():
        aware = name.endswith(("scale estimation", "GPTQ", "AWQ"))
        if aware and text is None:
            continue
        rows = [str(write_rows(model, text, work))] if aware and text else []
        name = f"nncf, {name}"
        peer = partial(make_nncf, model, work, name, [*rows, *words], nncf_python)
        yield Candidate(name, peer)
        if not aware:
            for method in ("rtn", "search", BEST):
                make = partial(make_no_larger, model, work, "npu", method, peer, own_text)
                yield Candidate(f"ours, npu, {method}, within the size of {name}", make)


# As `--quantize` takes them, and whether they look at a text; the one that is compared at other
# tools' sizes.
METHODS = {"rtn": False, "search": False, "awq": True, "gptq": True, "awq+gptq": True}
BEST = "gptq"

# Builder options (onnxruntime-genai 0.18). "k_quant, head and some layers int8" is what Liquid
# publishes as q4 (github.com/Liquid4All/onnx-export, genai_builder.py, preset Q4).
_MIXED = "k_quant_mixed"
GENAI: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "k_quant": {"algo_config": "k_quant"},
    "k_quant, head int8": {"algo_config": "k_quant_last"},
    "k_quant, head and some layers int8": {"algo_config": _MIXED},
    "k_quant, groups of 128": {
        "algo_config": "k_quant", "block_size": "128", "qmoe_block_size": "128"
    },
    "k_quant, head and some layers int8, groups of 128": {
        "algo_config": _MIXED, "block_size": "128", "qmoe_block_size": "128"
    },
}  # fmt: skip

_PER_CHANNEL = ("mode=int4_sym", "group_size=-1", "ratio=1.0")
NNCF: Mapping[str, Sequence[str]] = {
    "int4_sym per channel": _PER_CHANNEL,
    "int4_sym per channel, routers float": (*_PER_CHANNEL, "keep_router=true"),
    "int4_sym per channel, all layers": (*_PER_CHANNEL, "all_layers=true"),
    "int4_sym per channel, routers float, scale estimation": (
        *_PER_CHANNEL, "keep_router=true", "scale_estimation=true"
    ),
    "int4_sym per channel, routers float, AWQ": (*_PER_CHANNEL, "keep_router=true", "awq=true"),
    "int4_sym per channel, routers float, GPTQ": (*_PER_CHANNEL, "keep_router=true", "gptq=true"),
}  # fmt: skip


def _name(words: str, method: str | None, text: Path | None) -> tuple[str, dict[str, Any]]:
    """A bundle's name (target, precision, how) and what `export` is asked for."""
    if method is None:
        return words, {}
    if text is None or not METHODS[method]:
        return f"{words} {method}", {"quantize": method}
    return f"{words} {method} {text.name}", {"quantize": method, "calibrate": text}


def make_ours(model: str, work: Path, words: str, options: Mapping[str, Any]) -> Made:
    """A bundle of ours: target, precision and what tells it from others; kept between calls."""
    folder = work / "-".join(["ours", *words.split()])
    if not folder.exists():
        target, precision, *_ = words.split()
        lfm2_deploy.export(model, folder, target=target, precision=precision, **options)
    return load_ours(open_bundle(folder))


def make_no_larger(
    model: str,
    work: Path,
    target: str,
    method: str,
    peer: Callable[[], Made],
    text_file: Path | None,
) -> Made:
    """A bundle of ours whose weights take at most what another tool's take."""
    most = peer().weights_bytes
    folder = work / f"ours-{target}-int4-{method}-{most}-{text_file.name if text_file else ''}"
    checkpoint, units = open_checkpoint(model), measure_units(model, target, text_file)
    weights = list_weights(checkpoint.config)
    governed = {name for unit in units for name in unit.options[0].plans}
    # Norms, routers and convolutions stay float32.
    exact = sum(4 * weight.num_elements for weight in weights if weight.name not in governed)
    budget, found = most - exact, find_target(target)
    for _ in range(_TRIES):
        # `--max-size` would count graphs and gaps between tensors, too.
        choice = choose(units, budget)
        if not folder.exists():
            text = choose_text(checkpoint, text_file)
            options = ExportOptions(found, "int4", quantize=method, text=text, changed=choice.plans)
            export_checkpoint(checkpoint, folder, options, ignore_progress)
        made = load_ours(open_bundle(folder))
        if made.weights_bytes <= most:
            return made
        # A target keeps some numbers besides.
        budget = choice.size_bytes - (made.weights_bytes - most)
        shutil.rmtree(folder)
    raise RuntimeError(f"weights take {made.weights_bytes:,} bytes, more than {most:,}")


@functools.cache
def measure_units(model: str, target: str, text: Path | None) -> tuple[Unit, ...]:
    """What parts of the model cost in fewer bits; as `--max-size` measures it."""
    checkpoint = open_checkpoint(model)
    units = list_units(list_weights(checkpoint.config), find_target(target))
    rows = choose_text(checkpoint, text).rows
    rows = fit_rows(rows[:: -(-len(rows) // 8)], len(units), checkpoint.config.hidden_size)
    return measure_costs(checkpoint, units, rows, ignore_progress)


def load_ours(bundle: Bundle) -> Made:
    """Any bundle; what is stored for angles is not counted among the weights."""
    device = {"device": "cpu"} if bundle.manifest.runtime == "openvino" else {}
    runtime = find_runtime(bundle.manifest.runtime)(bundle, **device)
    files = {name for name in bundle.manifest.files if name.endswith((".onnx", ".data", ".xml"))}
    files |= {name for name in bundle.manifest.files if name == "openvino_model.bin"}
    size = sum(bundle.manifest.files[name].size_bytes for name in files)
    graphs = [bundle.path / graph.file for graph in bundle.manifest.graphs]
    weights = (count_onnx if graphs[0].suffix == ".onnx" else count_openvino)(graphs)
    return Made(size, weights, lambda row: runtime.open(1, len(row)).score([row])[0])


def make_genai(model: str, work: Path, name: str, options: Mapping[str, str]) -> Made:
    """onnxruntime-genai's builder on a checkpoint."""
    folder = work / name.replace(", ", "-").replace(" ", "-")
    words = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model, "-i", model]
    words += ["-o", str(folder), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")]
    if options:
        words += ["--extra_options", *(f"{key}={value}" for key, value in options.items())]
    run(words, folder)
    return load_genai(folder)


def load_genai(folder: Path) -> Made:
    """The builder's graph on plain onnxruntime, all positions at once."""
    import onnxruntime as ort

    config = json.loads((folder / "genai_config.json").read_text())
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    # Empty keys and values; convolutions' columns as zeros.
    known = {"batch_size": 1, "past_sequence_length": 0}
    known["kv_cache_dim"] = config["model"]["decoder"]["head_size"]
    states = {
        port.name: np.zeros([known.get(size, size) for size in port.shape], np.float32)
        for port in session.get_inputs()
        if port.name.startswith("past")
    }

    def score(row: Sequence[int]) -> FloatArray:
        ids = np.array([row], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **states}
        logits: FloatArray = session.run(["logits"], feed)[0][0]
        return logits

    files = [folder / "model.onnx", folder / "model.onnx.data"]
    size = sum(file.stat().st_size for file in files)
    return Made(size, count_onnx(files[:1]), score)


def count_onnx(graphs: Sequence[Path]) -> int:
    """Bytes of tensors in a weights file that some graphs share."""
    import onnx

    found: dict[str, int] = {}
    for graph in graphs:
        for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place and not _BESIDE.search(tensor.name):
                found[place.get("offset", "0")] = int(place["length"])
    return sum(found.values())


def make_nncf(model: str, work: Path, name: str, words: Sequence[str], python: str) -> Made:
    """nncf on our own float32 graph for OpenVINO: the same operators for both."""
    float_bundle = work / "ours-openvino-cpu-fp32"
    if not float_bundle.exists():
        lfm2_deploy.export(model, float_bundle, target="openvino-cpu", precision="fp32")
    out = work / (name.replace(", ", "-").replace(" ", "-") + ".xml")
    script, graph = str(HERE / "nncf_compress.py"), str(float_bundle / "openvino_model.xml")
    run([python, script, graph, str(out), *words], out)
    return load_openvino(out)


def load_openvino(graph: Path) -> Made:
    """A stateful IR on OpenVINO's CPU device; everything but the weights in float32."""
    import openvino as ov

    exact = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    # An NPU does not round activations to 8 bits, so neither does the CPU in its place.
    compiled = ov.Core().compile_model(
        graph, "CPU", {**exact, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    )
    request = compiled.create_infer_request()

    def score(row: Sequence[int]) -> FloatArray:
        request.reset_state()
        ids = np.array([row], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        logits = request.infer({**feed, "beam_idx": np.zeros(1, np.int32)})["logits"][0]
        return np.array(logits, np.float32)

    files = [graph, graph.with_suffix(".bin")]
    size = sum(file.stat().st_size for file in files)
    return Made(size, count_openvino([graph]), score)


def count_openvino(graphs: Sequence[Path]) -> int:
    """Bytes of constants."""
    import openvino as ov

    total = 0
    for graph in graphs:
        for node in ov.Core().read_model(graph).get_ops():
            if node.get_type_name() == "Constant":
                out = node.output(0)
                count = int(np.prod(list(out.shape), dtype=np.int64))
                total += count * out.get_element_type().bitwidth // 8
    return total


def write_rows(model: str, text: Path, work: Path) -> Path:
    """Windows of the calibration text, as nncf_compress.py reads them."""
    from accuracy import take_windows

    file = work / "rows.json"
    if not file.exists():
        tokenizer, beginning = Tokenizer.from_folder(Path(model)), 2_000_000
        content = text.read_text(encoding="utf-8")[:beginning]
        rows = take_windows(tokenizer, content, CALIBRATION_ROWS, CALIBRATION_LENGTH)
        file.write_text(json.dumps(rows))
    return file


def run(words: Sequence[str], out: Path) -> None:
    """Run a tool, once: what it made is kept between calls.

    Raises:
        RuntimeError: it failed; the last line that it printed.
    """
    if out.exists():
        return
    # With CI, OpenVINO sends nothing; these tools have environments without this package.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "true"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else "no word of why")
