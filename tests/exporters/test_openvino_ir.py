"""The stateful IR: what openvino-genai, NPUW and OpenVINO's CPU plugin make of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import pytest
import torch

import lfm2_deploy
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray

BundleOf = Callable[..., Bundle]
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
DEMO = Path(lfm2_deploy.__file__).parent / "demo" / "lfm2-demo-9m"
# Two float32 implementations, as a share of the largest logit; see test_exactness.py.
FLOAT_ORDER = 1e-4


def make_row(length: int) -> list[int]:
    row: list[int] = np.random.default_rng(length).integers(8, 512, length).tolist()
    return row


@torch.inference_mode()
def run_transformers(model: Any, row: Sequence[int]) -> FloatArray:
    logits: FloatArray = model(torch.tensor([list(row)]), use_cache=False).logits[0].numpy()
    return logits


class Reader:
    """Feeds a request as openvino-genai and optimum-intel do, padding at the left."""

    def __init__(self, request: Any) -> None:
        self.request, self.mask, self.real = request, np.zeros((1, 0), np.int64), 0

    def append(self, tokens: Sequence[int], padding: int = 0) -> FloatArray:
        """Logits of the real tokens [n, V]."""
        count = len(tokens)
        new = np.r_[np.zeros(padding, np.int64), np.ones(count, np.int64)]
        self.mask = np.concatenate([self.mask, new[None]], axis=1)
        positions = np.r_[np.zeros(padding, np.int64), np.arange(self.real, self.real + count)]
        self.real += count
        feeds = {
            "input_ids": np.array([[*[5] * padding, *tokens]], np.int64),
            "attention_mask": self.mask,
            "position_ids": positions[None].astype(np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
        for name, array in feeds.items():
            self.request.set_tensor(name, ov.Tensor(np.ascontiguousarray(array)))
        self.request.infer()
        logits = self.request.get_tensor("logits").data
        vocab = logits.shape[-1]
        last: FloatArray = logits.reshape(-1, vocab)[-count:].copy()
        return last


def compile_on_cpu(bundle: Bundle, settings: Mapping[str, Any] = EXACT) -> ov.CompiledModel:
    return ov.Core().compile_model(bundle.graph, "CPU", dict(settings))


def close(actual: FloatArray, expected: FloatArray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < FLOAT_ORDER * np.abs(expected).max()


# States and padding


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("padding", [(0, 0, 0), (3, 0, 0), (0, 2, 0), (5, 1, 3), (0, 4, 4)])
def test_padding_at_the_left_of_any_chunk_changes_nothing(
    kind: str,
    padding: Sequence[int],
    bundle_of: BundleOf,
    transformers_models: Mapping[str, Any],
) -> None:
    row = make_row(12)
    reader = Reader(compile_on_cpu(bundle_of(kind, "fp32", "openvino-cpu")).create_infer_request())
    pieces = (row[:4], row[4:5], row[5:])
    parts = [reader.append(piece, pad) for piece, pad in zip(pieces, padding, strict=True)]
    close(np.concatenate(parts), run_transformers(transformers_models[kind], row))


def test_states_are_named_as_openvino_genai_wants_them(bundle_of: BundleOf) -> None:
    request = compile_on_cpu(bundle_of("dense", "fp32", "openvino-cpu")).create_infer_request()
    names = {state.name for state in request.query_state()}
    assert "cache_params.past.conv.0cache_params.present.conv.0" in names
    # Of layers 1 and 4. optimum-intel takes the numbers for places in a list.
    for kind, count in {"conv": 4, "key": 2, "value": 2}.items():
        ends = [f"{kind}.{number}" for number in range(count)]
        assert {f"cache_params.past.{end}cache_params.present.{end}" for end in ends} <= names
    assert len(names) == 4 + 2 * 2


def test_position_ids_may_be_left_out(bundle_of: BundleOf) -> None:
    """NPUW and openvino-genai feed them, optimum-intel does not."""
    compiled = compile_on_cpu(bundle_of("dense", "fp32", "openvino-cpu"))
    row = make_row(5)
    request = compiled.create_infer_request()
    request.set_tensor("input_ids", ov.Tensor(np.array([row], np.int64)))
    request.set_tensor("attention_mask", ov.Tensor(np.ones((1, 5), np.int64)))
    request.set_tensor("beam_idx", ov.Tensor(np.zeros(1, np.int32)))
    request.infer()
    expected = Reader(compiled.create_infer_request()).append(row)
    assert np.array_equal(request.get_tensor("logits").data[0], expected)


def test_beams_continue_the_rows_they_are_told_to(
    bundle_of: BundleOf, transformers_models: Mapping[str, Any]
) -> None:
    request = compile_on_cpu(bundle_of("dense", "fp32", "openvino-cpu")).create_infer_request()
    rows = np.array([make_row(6), make_row(7)[:6]])

    def feed(ids: np.ndarray, total: int, beam: Sequence[int]) -> FloatArray:
        steps = ids.shape[1]
        request.set_tensor("input_ids", ov.Tensor(ids.astype(np.int64)))
        request.set_tensor("attention_mask", ov.Tensor(np.ones((2, total), np.int64)))
        positions = np.tile(np.arange(total - steps, total), (2, 1)).astype(np.int64)
        request.set_tensor("position_ids", ov.Tensor(positions))
        request.set_tensor("beam_idx", ov.Tensor(np.array(beam, np.int32)))
        request.infer()
        logits: FloatArray = request.get_tensor("logits").data[:, -1].copy()
        return logits

    feed(rows, 6, [0, 1])
    swapped = feed(np.array([[9], [10]]), 7, [1, 0])
    model = transformers_models["dense"]
    for number, (beam, token) in enumerate(((1, 9), (0, 10))):
        expected = run_transformers(model, [*rows[beam], token])[-1]
        close(swapped[number], expected)


# What the plugins fuse


def count_nodes(compiled: ov.CompiledModel) -> Counter[str]:
    nodes = compiled.get_runtime_model().get_ops()
    return Counter(node.get_rt_info()["layerType"].astype(str) for node in nodes)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_experts_become_gathered_products(precision: str, bundle_of: BundleOf) -> None:
    compiled = compile_on_cpu(bundle_of("moe", precision, "openvino-cpu"))
    # Gate, up and down of the four layers of experts.
    found = count_nodes(compiled)
    assert sum(n for kind, n in found.items() if kind.startswith("GatherMatmul")) == 3 * 4


def test_attention_is_folded_with_its_cache(bundle_of: BundleOf) -> None:
    settings = {**EXACT, "PERF_COUNT": True}
    compiled = compile_on_cpu(bundle_of("dense", "fp32", "openvino-cpu"), settings)
    reader = Reader(compiled.create_infer_request())
    reader.append(make_row(3))
    ran = Counter(node.node_type for node in reader.request.get_profiling_info())
    assert ran["ScaledDotProductAttentionWithKVCache"] == 2
    assert ran["RoPE"] == 4


# openvino-genai and its NPU path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("ir") / "demo"
    return lfm2_deploy.export(str(DEMO), place, target="openvino-cpu", precision="fp32")


def test_openvino_genai_writes_the_text_of_our_runtime(demo: Bundle) -> None:
    prompt, count = "Once upon a time there was", 48
    pipeline = openvino_genai.LLMPipeline(str(demo.path), "CPU", **EXACT)
    config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True)
    config.do_sample, config.apply_chat_template = False, False
    theirs = pipeline.generate(prompt, config)
    ours = lfm2_deploy.load(demo).generate(
        prompt, max_new_tokens=count, temperature=0, repetition_penalty=1.0, ignore_eos=True
    )
    assert theirs == ours.text
    assert len(set(ours.token_ids)) > count // 4


# One file a prompt and mode: a prompt that fits a chunk, fills it, and spans two.
NPUW_CASES = [("STATIC", 40), ("DYNAMIC", 40), ("DYNAMIC", 64), ("DYNAMIC", 100), ("DYNAMIC", 128)]
# Keys and values are float16 there: at most 0.003 seen. Padding that reaches a conv state moves
# logits by 0.2 to 30 (optimum-intel 2.2.0).
NPUW_ERROR = 0.02


@pytest.mark.parametrize(("hint", "length"), NPUW_CASES)
def test_npu_path_keeps_padding_out_of_every_state(hint: str, length: int, demo: Bundle) -> None:
    row = np.random.default_rng(length).integers(8, 4096, length + 8).tolist()
    settings = {
        "NPU_USE_NPUW": "YES",
        "NPUW_LLM": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "NPUW_LLM_MAX_PROMPT_LEN": 128,
        "NPUW_LLM_MIN_RESPONSE_LEN": 64,
        "NPUW_LLM_PREFILL_HINT": hint,
        "NPUW_LLM_PREFILL_CHUNK_SIZE": 64,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = ov.Core().compile_model(demo.graph, "NPU", settings)
    theirs, ours = (Reader(c.create_infer_request()) for c in (compiled, compile_on_cpu(demo)))
    for piece in (row[:length], *([token] for token in row[length:])):
        actual, expected = theirs.append(piece)[-1], ours.append(piece)[-1]
        assert np.abs(actual - expected).max() < NPUW_ERROR
