"""A graph of the operators that LFM2 needs, as DirectML has them, is clean; one step off is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.lint.rules.directml import DIRECTML
from lfm2_deploy.findings import Outcome

from .building import Sketch, ints, op

HIDDEN, HEADS, KV, WIDTH, LENGTH = 64, 4, 2, 16, 128
SHAPES = {"K": HIDDEN, "N": HIDDEN, "bits": 4, "block_size": 32}


def write_conv() -> list[onnx.NodeProto]:
    """Concat, Conv, Slice instead of CausalConvWithState."""
    return [
        op("Concat", "past_conv bx", "columns", axis=2),
        op("Conv", "columns kernel", "conv", group=HIDDEN),
        op("Slice", "columns last end two", "present_conv"),
        op("Transpose", "conv", "mixed", perm=[0, 2, 1]),
    ]


def write_attention() -> list[onnx.NodeProto]:
    """Rotation apart from attention, norms apart from both."""
    inputs = "rq rk v past_key past_value lengths total"
    return [
        op("ms.SkipSimplifiedLayerNormalization", "mixed x gamma", "h - - sum", epsilon=1e-5),
        op("ms.MatMulNBits", "h qw qs qz", "q", **SHAPES),
        op("Reshape", "q heads", "q4"),
        op("SimplifiedLayerNormalization", "q4 head_gamma", "qn", axis=-1, stash_type=1),
        op("Reshape", "qn flat", "q3"),
        op("ms.RotaryEmbedding", "q3 positions cos sin", "rq"),
        op("ms.RotaryEmbedding", "k positions cos sin", "rk"),
        op("ms.GroupQueryAttention", inputs, "a key value", num_heads=HEADS, kv_num_heads=KV),
    ]


def write_experts() -> list[onnx.NodeProto]:
    """One gathered expert: B of MatMulNBits comes from a Gather of packed bytes."""
    return [
        op("Sigmoid", "a", "p"),
        op("TopK", "p one", "weights chosen", axis=-1),
        op("Gather", "packed expert", "w"),
        op("Gather", "packed_scales expert", "s"),
        op("ms.MatMulNBits", "a w s", "m", **SHAPES),
        op("Cast", "m", "y", to=onnx.TensorProto.FLOAT),
    ]


def sketch(nodes: list[onnx.NodeProto], opset: int = 21) -> Sketch:
    half = "float16"
    return Sketch(
        nodes,
        {
            "x": (half, ["batch", "tokens", HIDDEN]),
            "bx": (half, ["batch", HIDDEN, "tokens"]),
            "past_conv": (half, ["batch", HIDDEN, 2]),
            "k": (half, ["batch", "tokens", KV * WIDTH]),
            "v": (half, ["batch", "tokens", KV * WIDTH]),
            "past_key": (half, ["batch", KV, LENGTH, WIDTH]),
            "past_value": (half, ["batch", KV, LENGTH, WIDTH]),
            "positions": ("int64", ["batch", "tokens"]),
            "lengths": ("int32", ["batch"]),
            "total": ("int32", [1]),
            "expert": ("int64", []),
        },
        {
            "kernel": (half, [HIDDEN, 1, 3]),
            **{"last": ints(-2), "end": ints(2**31), "two": ints(2), "one": ints(1)},
            **{"gamma": (half, [HIDDEN]), "head_gamma": (half, [WIDTH])},
            **{"cos": (half, [LENGTH, WIDTH // 2]), "sin": (half, [LENGTH, WIDTH // 2])},
            **{"heads": ints(0, 0, HEADS, WIDTH), "flat": ints(0, 0, HIDDEN)},
            **{"qw": ("uint8", [HIDDEN, 2, 16]), "qs": (half, [HIDDEN, 2])},
            "qz": np.full((HIDDEN, 1), 0x88, np.uint8),
            "packed": ("uint8", [8, HIDDEN, 2, 16]),
            "packed_scales": (half, [8, HIDDEN, 2]),
        },
        opset,
    )


def test_lfm2_in_directml_operators_is_clean(tmp_path: Path) -> None:
    nodes = [*write_conv(), *write_attention(), *write_experts()]
    report = DIRECTML.lint([sketch(nodes).save(tmp_path)])
    assert report.faults == ()
    assert [one.rule for one in report.findings] == ["directml/attention-append"]
    assert report.unchecked == DIRECTML.open_questions


@pytest.mark.parametrize(
    ("opset", "lost"), [(22, {"Conv"}), (23, {"Conv", "Reshape", "Cast", "Transpose"})]
)
def test_newer_opset_loses_operators(tmp_path: Path, opset: int, lost: set[str]) -> None:
    nodes = [*write_conv(), *write_attention(), *write_experts()]
    report = DIRECTML.lint([sketch(nodes, opset).save(tmp_path)])
    assert {one.operator for one in report.faults} == lost
    assert {one.outcome for one in report.faults} == {Outcome.ELSEWHERE}
