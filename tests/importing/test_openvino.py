"""An IR that optimum-intel made, as a bundle of our runtime; and the fault it has on NPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray

from exporters.adopt.openvino_ir import find_left_padding_fault
from exporters.lint.read_ir import read_ir
from lfm2_deploy import import_model
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import RuntimeUnavailableError, SourceError
from lfm2_deploy.imported import LEFT_PADDING, NO_PROPOSALS, ONE_ROW
from lfm2_deploy.registry import find_runtime

from .conftest import INTEL, TOKENS

Truth = NDArray[np.float32]
IR = INTEL / "openvino_model.xml"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return import_model(INTEL, tmp_path_factory.mktemp("i") / "b")


def _load(bundle: Bundle) -> Any:
    return find_runtime("openvino")(bundle, threads=1)


def test_ir_read_in_pieces_gives_the_models_logits(imported: Bundle, truth: Truth) -> None:
    session = _load(imported).open(1, 64)
    pieces = [TOKENS[:17], TOKENS[17:18], TOKENS[18:]]
    logits = np.concatenate([session.score([piece])[0] for piece in pieces])
    # Float32 in another order.
    assert np.abs(logits - truth).max() < 1e-5 * np.abs(truth).max()


def test_ir_goes_back_exactly_though_its_conv_states_are_wider(imported: Bundle) -> None:
    runtime = _load(imported)
    session = runtime.open(1, 64)
    session.prefill([TOKENS[:9]])
    mark, snapshot = session.mark(), session.snapshot()
    shapes = {snapshot.arrays[s.input].shape for s in runtime._model.states if s.kind == "conv"}
    assert shapes == {(1, 32, 2)}
    first = session.decode([TOKENS[9]])
    session.rewind(mark)
    assert np.array_equal(session.decode([TOKENS[9]]), first)
    other = runtime.open(1, 32)
    other.restore(snapshot)
    assert np.array_equal(other.decode([TOKENS[9]]), first)


def test_record_tells_the_tool_the_fault_and_the_file(imported: Bundle) -> None:
    record = imported.manifest.imported
    assert record is not None
    assert (record.kind, record.tool) == ("openvino", "optimum-intel 2.2.0")
    assert record.traits == (ONE_ROW, NO_PROPOSALS, LEFT_PADDING)
    assert imported.manifest.made_with["transformers"] == "5.4.0"
    assert (imported.path / IR.name).read_bytes() == IR.read_bytes()


def test_fault_is_found_in_theirs_and_not_in_ours(bundle_of: Any) -> None:
    ours: Bundle = bundle_of("dense", "fp32", "openvino-cpu")
    assert "conv" in find_left_padding_fault(read_ir(IR))
    assert find_left_padding_fault(read_ir(ours.graph)) == ""


def test_npu_is_refused_for_theirs_because_of_the_fault_and_not_for_ours(
    imported: Bundle, bundle_of: Any
) -> None:
    load = find_runtime("openvino")
    with pytest.raises(RuntimeUnavailableError, match=r"mask\[:, :s\].*export --target npu"):
        load(imported, device="npu")
    if "NPU" not in ov.Core().available_devices:  # ours would run where there is one
        with pytest.raises(RuntimeUnavailableError, match="finds no NPU"):
            load(bundle_of("dense", "fp32", "openvino-cpu"), device="npu")


def test_target_npu_is_refused_at_import_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="answers are wrong; export the model itself"):
        import_model(INTEL, tmp_path / "b", target="npu")
    assert list(tmp_path.iterdir()) == []


def _read_as_on_an_npu(tokens: Sequence[int], chunk: int) -> NDArray[np.float32]:
    """Last logits of a prompt padded on the left to 32, as OpenVINO has an NPU read it."""
    settings = {
        **{"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES", "NPUW_DEVICES": "CPU"},
        **{"NPUW_ONLINE_PIPELINE": "NONE", "NPUW_LLM_MIN_RESPONSE_LEN": 16},
        **{"INFERENCE_PRECISION_HINT": "f32"},
        **{"NPUW_LLM_MAX_PROMPT_LEN": 32, "NPUW_LLM_PREFILL_CHUNK_SIZE": chunk},
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(IR), "NPU", settings).create_infer_request()
    ids = np.array([tokens], np.int64)
    request.set_tensor("input_ids", ov.Tensor(ids))
    request.set_tensor("attention_mask", ov.Tensor(np.ones_like(ids)))
    request.infer()
    return np.array(request.get_tensor("logits").data[0, -1])


def test_fault_that_is_refused_makes_logits_wrong_when_chunks_are_padded(truth: Truth) -> None:
    # Of 17 tokens the second chunk holds 16, and the mask's first 16 columns are 15 zeros.
    expected = truth[16]
    whole, chunked = (
        np.abs(_read_as_on_an_npu(TOKENS[:17], chunk) - expected).max() for chunk in (32, 16)
    )
    # 16-bit keys and values alone move logits by half a percent of the largest.
    assert whole < 0.01 * np.abs(expected).max()
    assert chunked > 3 * whole


def test_ir_of_other_states_or_inputs_is_refused(tmp_path: Path) -> None:
    text = IR.read_text(encoding="utf-8")
    for number, (old, new, words) in enumerate(
        (
            ("cache_params.past", "cache", "states of other names"),
            ('"input_ids"', '"inputs_embeds"', "vision or audio"),
            ('"beam_idx"', '"beams"', "takes no beam_idx"),
        )
    ):
        source = tmp_path / f"source{number}"
        source.mkdir()
        (source / IR.name).write_text(text.replace(old, new), encoding="utf-8")
        for name in ("openvino_model.bin", "config.json"):
            (source / name).write_bytes((INTEL / name).read_bytes())
        with pytest.raises(SourceError, match=words):
            import_model(source, tmp_path / "b")
