"""Qualcomm's HTP in its emulator: every block, the whole pair, and what is refused.

The emulator computes as the device does, in 16-bit integers or float16. Where there is none,
onnxruntime's CPU kernels stand in for what does not depend on it.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporters.options import ExportOptions
from exporters.pipeline import export_checkpoint
from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.compare.metrics import kl_divergence
from lfm2_deploy.config import parse_config
from lfm2_deploy.contracts import Checkpoint, FloatArray, Origin, Runtime, ignore_progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import (
    BundleError,
    ContextOverflowError,
    ExportError,
    RuntimeUnavailableError,
)
from lfm2_deploy.registry import RUNTIMES, find_runtime, find_target
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.weights import list_weights


def missing_emulator() -> str:
    """Why the emulator does not run here; empty if it does."""
    try:
        from runtimes.qnn_device import find_device

        find_device("emulator")
    except (ImportError, RuntimeUnavailableError) as error:
        return str(error)
    return ""


MISSING = missing_emulator()
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason=f"NOT RUN: {MISSING}"
)
needs_emulator = pytest.mark.skipif(bool(MISSING), reason=f"NOT RUN: {MISSING}")

CHUNK, CONTEXT = 7, 48
# Of the largest logit. float16 has 11 bits and products of some hundred terms: 2e-3 to 4e-3 seen.
HALF = 1e-2
# Weights of 8 bits, a scale a row, weigh more than activations of 16: 2e-2 to 9e-2 seen, as with
# onnxruntime's own int8 on random weights, which forgive less than trained ones.
EIGHT_BITS = 0.15
# The same integers, computed by two implementations: a rounding step of 16 bits now and then.
SAME_INTEGERS = 1e-2
TOLERANCE = {"fp16": HALF, "int8": EIGHT_BITS}

_ONE_LAYER: Mapping[str, Any] = {
    "model_type": "lfm2_moe",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "conv_L_cache": 4,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "conv": {"layer_types": ["conv"], "num_dense_layers": 1},
    "attention": {"layer_types": ["full_attention"], "num_dense_layers": 1},
    "experts": {"layer_types": ["conv"], "num_dense_layers": 0},
}


def load(bundle: Bundle, device: str = "emulator") -> Runtime:
    runtime: Runtime = find_runtime("qnn")(bundle, threads=1, device=device)
    return runtime


def make_row(length: int, vocabulary: int = 512) -> list[int]:
    row: list[int] = np.random.default_rng(length).integers(8, vocabulary, length).tolist()
    return row


def share(actual: FloatArray, expected: FloatArray) -> float:
    """The largest difference, as a share of the largest logit."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def make_block(kind: str) -> Checkpoint:
    raw = {**_ONE_LAYER, **BLOCKS[kind]}
    config = parse_config(raw)
    specs = {spec.name: spec for spec in list_weights(config)}
    return SyntheticCheckpoint(config, raw, Origin("synthetic", kind), {}, 0, specs)


# Blocks


@needs_emulator
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_in_the_emulator_gives_what_torch_gives(
    kind: str, precision: Any, tmp_path: Path
) -> None:
    checkpoint = make_block(kind)
    rows = [make_row(40, 100), make_row(41, 100)[:40]]
    options = ExportOptions(find_target("qnn"), precision, CONTEXT, chunk=CHUNK, calibration=rows)
    bundle = export_checkpoint(checkpoint, tmp_path / kind, options, ignore_progress)
    row = make_row(17, 100)
    expected = find_runtime("reference")(checkpoint).open(1, 32).score([row])[0]
    session = load(bundle).open(1, 32)
    logits = [*session.score([row[:15]]), *(session.decode([t]) for t in row[15:])]
    assert share(np.concatenate(logits), expected) < TOLERANCE[precision]


# The whole pair


@pytest.fixture(scope="module")
def qnn_bundle(
    checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    root = tmp_path_factory.mktemp("qnn")

    @functools.cache
    def make(precision: str) -> Bundle:
        return export(
            str(checkpoints["dense"]), root / precision, target="qnn", precision=precision,
            context_length=CONTEXT, chunk=CHUNK, compile_for=["60"] if precision == "int8" else (),
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def emulated(qnn_bundle: Callable[[str], Bundle]) -> Callable[[str], Runtime]:
    return functools.cache(lambda precision: load(qnn_bundle(precision)))


@torch.inference_mode()
def run_transformers(model: Any, row: Sequence[int]) -> FloatArray:
    logits: FloatArray = model(torch.tensor([list(row)]), use_cache=False).logits[0].numpy()
    return logits


@needs_emulator
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_dense_model_goes_on_from_prompts_of_any_length_as_in_transformers(
    precision: str,
    length: int,
    emulated: Callable[[str], Runtime],
    transformers_models: Mapping[str, Any],
) -> None:
    row = make_row(length + 2)
    session = emulated(precision).open(1, CONTEXT)
    logits = [session.prefill([row[:length]])]
    logits += [session.decode([token]) for token in row[length:]]
    expected = run_transformers(transformers_models["dense"], row)[length - 1 :]
    assert share(np.concatenate(logits), expected) < TOLERANCE[precision]


@needs_emulator
def test_greedy_tokens_of_float16_are_those_of_transformers(
    emulated: Callable[[str], Runtime], transformers_models: Mapping[str, Any]
) -> None:
    row = make_row(10)
    session = emulated("fp16").open(1, CONTEXT)
    logits = session.prefill([row])
    for _ in range(12):
        row.append(int(logits[0].argmax()))
        logits = session.decode([row[-1]])
    expected = run_transformers(transformers_models["dense"], row).argmax(-1)
    assert row[10:] == expected[9:-1].tolist()


@needs_emulator
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_fills_a_chunk_up_does_not_change_what_is_before(
    precision: str, emulated: Callable[[str], Runtime]
) -> None:
    row, runtime = make_row(CHUNK), emulated(precision)
    full = runtime.open(1, CONTEXT).score([row])[0]
    for length in range(2, CHUNK):
        part = runtime.open(1, CONTEXT).score([row[:length]])[0]
        # All but the head is equal bit for bit; its product, on the CPU, sums in another order
        # where it has fewer rows.
        assert share(part, full[:length]) < 1e-5


@needs_emulator
def test_prompt_cut_anywhere_goes_on_alike(emulated: Callable[[str], Runtime]) -> None:
    row, runtime = make_row(2 * CHUNK), emulated("int8")
    whole = runtime.open(1, CONTEXT).score([row])[0]
    for first in (1, 3, CHUNK + 2):
        session = runtime.open(1, CONTEXT)
        parts = [session.score([row[:first]])[0], session.score([row[first:]])[0]]
        # Attention sums in another order, and the emulator's softmax of 16 bits rounds.
        assert share(np.concatenate(parts), whole) < SAME_INTEGERS


@needs_emulator
def test_rewound_and_restored_rows_go_on_bit_for_bit(emulated: Callable[[str], Runtime]) -> None:
    row, runtime = make_row(12), emulated("int8")
    session, other = runtime.open(1, CONTEXT), runtime.open(1, CONTEXT)
    session.prefill([row])
    mark, snapshot = session.mark(), session.snapshot()
    expected = session.decode([9])
    session.rewind(mark)
    np.testing.assert_array_equal(session.decode([9]), expected)
    other.restore(snapshot)
    np.testing.assert_array_equal(other.decode([9]), expected)


def test_context_can_be_filled_to_its_last_token(qnn_bundle: Callable[[str], Bundle]) -> None:
    session = load(qnn_bundle("int8"), "cpu").open()
    assert session.capacity == CONTEXT
    session.prefill([make_row(CONTEXT - 1)])
    session.decode([9])
    with pytest.raises(ContextOverflowError):
        session.decode([9])


@needs_emulator
def test_emulator_and_onnxruntime_compute_the_same_integers(
    emulated: Callable[[str], Runtime], qnn_bundle: Callable[[str], Bundle]
) -> None:
    row = make_row(20)
    expected = load(qnn_bundle("int8"), "cpu").open(1, CONTEXT).score([row])[0]
    actual = emulated("int8").open(1, CONTEXT).score([row])[0]
    assert share(actual, expected) < SAME_INTEGERS


@needs_emulator
def test_demo_mixture_in_eight_bits_is_close_to_torch(tmp_path: Path) -> None:
    bundle = export(
        str(DEMO_MODEL), tmp_path / "demo", target="qnn", precision="int8",
        context_length=64, chunk=24,
    )  # fmt: skip
    text = Tokenizer.from_folder(DEMO_MODEL).encode(
        PRIDE_AND_PREJUDICE[300:], add_special_tokens=False
    )[:48]
    expected = find_runtime("reference")(open_checkpoint(str(DEMO_MODEL))).open(1, 64).score([text])
    actual = load(bundle).open(1, 64).score([text])
    # 0.0004 nats were seen over 472 tokens; a fault of one layer gives a hundred times that.
    assert kl_divergence(expected[0], actual[0]).mean() < 0.004


# Compiled ahead of time


@needs_emulator
def test_compiled_graphs_are_loaded_and_give_the_same_bits(
    qnn_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, row = qnn_bundle("int8"), make_row(16)
    assert {blob.graph for blob in bundle.manifest.blobs} == {"prefill", "decode"}
    compiled = _score_and_decode(load(bundle), row)
    monkeypatch.setattr("runtimes.qnn.find_contexts", lambda *arguments: {})
    np.testing.assert_array_equal(compiled, _score_and_decode(load(bundle), row))


def _score_and_decode(runtime: Runtime, row: Sequence[int]) -> FloatArray:
    session = runtime.open(1, CONTEXT)
    return np.concatenate([*session.score([row[:-1]]), session.decode([row[-1]])])


def test_graphs_compiled_by_another_version_or_for_another_chip_are_left_alone() -> None:
    from lfm2_deploy.manifest import BlobRecord
    from runtimes.qnn_contexts import find_contexts
    from runtimes.qnn_device import CPU, EMULATOR, NPU, QnnDevice, describe_package

    def find(device: QnnDevice, *blobs: tuple[str, str]) -> Any:
        records = tuple(
            BlobRecord("decode", "decode", f"{soc}.onnx", soc, made, "") for soc, made in blobs
        )
        bundle: Any = type("", (), {"manifest": type("", (), {"blobs": records})})
        return find_contexts(bundle, device)

    now, emulator = describe_package(), QnnDevice(EMULATOR, None, "60")
    assert find(emulator, ("60", now), ("88", now)) == {"decode": "60.onnx"}
    assert find(emulator, ("88", now)) == {}
    assert find(emulator, ("60", "onnxruntime-qnn 2.6.0, QNN 2.48.0")) == {}
    assert find(QnnDevice(NPU, None, None), ("60", now)) == {"decode": "60.onnx"}
    assert find(QnnDevice(NPU, None, None), ("60", now), ("88", now)) == {}
    assert find(QnnDevice(CPU, None, None), ("60", now)) == {}


# Refusals


@needs_emulator
def test_operator_that_the_npu_lacks_is_refused_by_name(
    qnn_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    from runtimes.qnn_device import create_session, find_device

    folder = shutil.copytree(qnn_bundle("fp16").path, tmp_path / "copy")
    model = onnx.load(folder / "decode.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "Sigmoid")
    node.op_type, node.name = "Erf", "planted"
    onnx.save(model, folder / "decode.onnx")
    with pytest.raises(BundleError) as caught:
        create_session(folder / "decode.onnx", find_device("emulator"), 1)
    message = str(caught.value)
    assert "decode.onnx does not run on Qualcomm HTP" in message
    assert "it refuses planted (Erf)" in message
    assert "\n" not in message


@needs_emulator
def test_every_node_is_placed_on_the_npu(qnn_bundle: Callable[[str], Bundle]) -> None:
    from runtimes.qnn_device import NAME, create_session, find_device

    for precision in ("fp16", "int8"):
        for graph in ("prefill", "decode"):
            path = qnn_bundle(precision).find_graph(graph)
            session = create_session(path, find_device("emulator"), 1)
            parts = session.get_provider_graph_assignment_info()
            # One part: nothing goes back and forth between the NPU and the host.
            assert [part.ep_name for part in parts] == [NAME]
            assert len(parts[0].get_nodes()) > 100


@needs_emulator
def test_emulator_says_that_it_is_one(emulated: Callable[[str], Runtime]) -> None:
    info = emulated("int8").info
    assert info.runtime == "qnn"
    assert "emulated on this CPU (SoC model 60" in info.device


@pytest.mark.parametrize("device", [None, "npu"])
def test_missing_npu_is_refused_with_what_it_needs(
    device: str | None, qnn_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.qnn_device.list_devices", list)
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime("qnn")(qnn_bundle("fp16"), device=device)
    assert "finds no Qualcomm NPU here: it needs Windows on Arm" in str(caught.value)
    assert "--device emulator" in str(caught.value)


def test_device_nobody_knows_is_refused(qnn_bundle: Callable[[str], Bundle]) -> None:
    with pytest.raises(RuntimeUnavailableError, match="it takes npu, emulator, cpu"):
        load(qnn_bundle("fp16"), "gpu")


def test_missing_package_is_told_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxruntime_qnn" else real(n)
    )
    with pytest.raises(RuntimeUnavailableError, match=r"needs onnxruntime_qnn, which is not .*qnn"):
        RUNTIMES["qnn"].load()


def test_chip_nobody_knows_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no Qualcomm platform '4000': expected 60"):
        export("synthetic:tiny-dense", tmp_path / "x", target="qnn", compile_for=["4000"])


def test_float32_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no precision 'fp32': expected one of fp16, int8, int4"):
        export("synthetic:tiny-dense", tmp_path / "x", target="qnn", precision="fp32")


def test_graph_of_another_shape_is_refused(
    qnn_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    folder = shutil.copytree(qnn_bundle("fp16").path, tmp_path / "copy")
    manifest = (folder / "manifest.json").read_text().replace('"chunk": 7', '"chunk": 8')
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match=r"is damaged, or of another version: "):
        load(open_bundle(folder), "cpu")
