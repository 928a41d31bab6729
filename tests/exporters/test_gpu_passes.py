"""Each pass for GPUs preserves outputs: in numpy before it, in ONNX Runtime's CPU after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.draft import Draft
from exporters.passes.gpu.attention import lower_attention, lower_attention_apart
from exporters.passes.gpu.conv import lower_fused_conv, lower_padded_conv, lower_plain_conv
from exporters.passes.gpu.embedding import lower_embedding, lower_embedding_plainly
from exporters.passes.gpu.fused_experts import lower_fused_experts
from exporters.passes.gpu.linear import (
    Product,
    lower_linear,
    multiply_packed,
    multiply_with_zero_points,
)
from exporters.passes.gpu.plain_experts import lower_dense_experts, lower_gathered_experts
from exporters.passes.weights import encode_rows, encode_rows_half
from exporters.quantize.pack import dequantize, unpack
from exporters.quantize.plan import Precision
from exporters.targets import directml
from exporters.targets.target import Pass
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import CONV_ENDS, POSITIONS, SEQLENS, TOTAL

from .graphs import Arrays, Op, evaluate, read_as_stored, run_in_ort, sketch
from .semantic_ops import Array

EMBEDDING = "model.embed_tokens.weight"
PROJECTION = "model.layers.0.conv.in_proj.weight"
ROUTER = "model.layers.2.feed_forward.gate.weight"
CONV = "model.layers.0.conv.conv.weight"
HEAD_NORMS = [f"model.layers.1.self_attn.{x}_layernorm.weight" for x in "qk"]
EXPERTS = [
    f"model.layers.2.feed_forward.experts.{e}.{w}.weight"
    for e in range(5)
    for w in ("w1", "w3", "w2")
]

FLOATS: Sequence[Precision] = ("fp32", "fp16")
INTEGERS: Sequence[Precision] = ("int8", "int4")
WIDE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
each_dtype = pytest.mark.parametrize("dtype", [WIDE, HALF], ids=["float32", "float16"])
# What a target stores and computes in; of integers also in float32, where errors are plain to see.
TYPES: Sequence[tuple[Precision, ir.DataType]] = (
    ("fp32", WIDE),
    ("fp16", HALF),
    *((precision, dtype) for precision in INTEGERS for dtype in (WIDE, HALF)),
)
each_type = pytest.mark.parametrize(("precision", "dtype"), TYPES)
each_product = pytest.mark.parametrize("multiply", [multiply_packed, multiply_with_zero_points])

# Shares of the largest output. Float32 sums of up to 160 products: at most 1e-6 seen.
WIDE_ERROR = 5e-6
# float16 rounds each factor, product and result by 2^-11; sums of random signs of these grow
# slowly: at most 4e-3 seen, over the experts' three products in a row. A wrong head, expert or
# column is 1e-1 away.
HALF_ERROR = 1e-2
# What stays as float32 where a graph computes in float16.
KEPT_WIDE = ("scores", "probabilities")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def close(actual: Array, expected: Array, dtype: ir.DataType) -> None:
    tolerance = WIDE_ERROR if dtype == WIDE else HALF_ERROR
    wide = actual.astype(np.float32)
    np.testing.assert_allclose(wide, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def draft_for_gpu(
    checkpoint: Checkpoint,
    precision: Precision,
    feeds: Arrays,
    host: Arrays,
    *ops: Op,
    dtype: ir.DataType,
) -> Draft:
    """As `gpu_frame` leaves a graph: retyped, with what the host computes as inputs."""
    draft = sketch(checkpoint.config, precision, feeds, *ops, planner=directml.plan)
    draft.dtype = dtype
    for value in (*draft.graph.inputs, *draft.graph.outputs):
        if value.dtype == WIDE and value.name not in KEPT_WIDE:
            value.type = ir.TensorType(dtype)
    for name, array in host.items():
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        draft.shared[name] = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind)
        draft.graph.inputs.append(draft.shared[name])
    return draft


def lower(
    checkpoint: Checkpoint,
    precision: Precision,
    rewrite: Pass,
    feeds: Arrays,
    *ops: Op,
    host: Arrays | None = None,
    dtype: ir.DataType = WIDE,
) -> tuple[Arrays, Arrays]:
    """Outputs of a few nodes in numpy, and in ONNX Runtime of what a pass makes of them."""
    host = host or {}
    narrow = dtype.numpy()
    given = {
        name: array.astype(narrow) if array.dtype == np.float32 and name not in KEPT_WIDE else array
        for name, array in feeds.items()
    }
    seen = {n: a.astype(np.float32) if a.dtype == narrow else a for n, a in given.items()}
    draft = draft_for_gpu(checkpoint, precision, feeds, host, *ops, dtype=dtype)
    plain = sketch(checkpoint.config, precision, feeds, *ops)
    read = read_as_stored(checkpoint, precision, directml.plan)
    before = evaluate(plain.graph, checkpoint.config, read, seen)
    rewrite(draft)
    return before, run_in_ort(draft, checkpoint, {**given, **host})


# Embedding


@pytest.mark.parametrize("precision", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("rewrite", [lower_embedding, lower_embedding_plainly])
def test_lowered_embedding_gives_the_stored_rows(
    checkpoint: Checkpoint, rewrite: Pass, precision: Precision
) -> None:
    ids, op = np.array([[4, 0, 99, 7, 4]]), Op("Embedding", ["ids", EMBEDDING], ["y"])
    before, after = lower(checkpoint, precision, rewrite, {"ids": ids}, op)
    # Looked up and scaled, one product a number: nothing is left to round differently.
    np.testing.assert_array_equal(after["y"], before["y"])


@pytest.mark.parametrize("precision", ["fp16", *INTEGERS])
@pytest.mark.parametrize("rewrite", [lower_embedding, lower_embedding_plainly])
def test_lowered_embedding_in_float16_is_rounded_at_most_twice(
    checkpoint: Checkpoint, rewrite: Pass, precision: Precision
) -> None:
    ids, op = np.array([[4, 0, 99, 7, 4]]), Op("Embedding", ["ids", EMBEDDING], ["y"])
    before, after = lower(checkpoint, precision, rewrite, {"ids": ids}, op, dtype=HALF)
    assert after["y"].dtype == np.float16
    # The scale, and its product with a level: 2^-11 each.
    np.testing.assert_allclose(after["y"].astype(np.float32), before["y"], rtol=2**-10, atol=1e-6)


# Projections


@each_type
@each_product
@pytest.mark.parametrize("weight", [PROJECTION, EMBEDDING], ids=["projection", "head"])
def test_lowered_projection_preserves_products_with_stored_weights(
    checkpoint: Checkpoint,
    weight: str,
    precision: Precision,
    multiply: Product,
    dtype: ir.DataType,
) -> None:
    op, rewrite = Op("Linear", ["x", weight], ["y"]), lower_linear(multiply)
    feeds = {"x": normal(1, 5, 64)}
    before, after = lower(checkpoint, precision, rewrite, feeds, op, dtype=dtype)
    close(after["y"], before["y"], dtype)


def test_router_multiplies_in_float32_where_the_graph_computes_in_float16(
    checkpoint: Checkpoint,
) -> None:
    feeds = {"x": normal(1, 7, 64).astype(np.float16).astype(np.float32)}
    draft = draft_for_gpu(
        checkpoint, "int4", feeds, {}, Op("Linear", ["x", ROUTER], ["scores"]), dtype=HALF
    )
    before = evaluate(draft.graph, checkpoint.config, checkpoint.read, feeds)
    lower_linear(multiply_packed)(draft)
    after = run_in_ort(draft, checkpoint, {"x": feeds["x"].astype(np.float16)})
    close(after["scores"], before["scores"], WIDE)


def test_table_and_head_are_one_table(checkpoint: Checkpoint) -> None:
    draft = draft_for_gpu(
        checkpoint,
        "int4",
        {"ids": np.array([[1, 2]])},
        {},
        Op("Embedding", ["ids", EMBEDDING], ["x"]),
        Op("Linear", ["x", EMBEDDING], ["y"]),
        dtype=HALF,
    )
    lower_embedding_plainly(draft)
    lower_linear(multiply_with_zero_points)(draft)
    stored = {d.name for d in draft.book.declared.values() if not d.name.startswith("zero_points")}
    assert stored == {f"{EMBEDDING}.q8", f"{EMBEDDING}.scales"}


def test_zero_points_of_8_bits_are_the_middle_and_shared_by_matrices_of_a_size(
    checkpoint: Checkpoint,
) -> None:
    weights = [f"model.layers.0.feed_forward.{w}.weight" for w in ("w1", "w3")]
    ops = [Op("Linear", ["x", w], [f"y{n}"]) for n, w in enumerate([*weights, PROJECTION])]
    draft = draft_for_gpu(checkpoint, "int8", {"x": normal(1, 2, 64)}, {}, *ops, dtype=WIDE)
    lower_linear(multiply_with_zero_points)(draft)
    points = {d.name: d for d in draft.book.declared.values() if "zero_points" in d.name}
    # 160 rows of two groups of 32, and 192 rows of two.
    assert {p.shape for p in points.values()} == {(320,), (384,)}
    jobs = [job for job in draft.book.jobs if job.slots[0].initializer in points]
    assert len(jobs) == 2
    assert all((job.encode()[0] == 128).all() for job in jobs)


def test_4_bits_have_no_zero_points(checkpoint: Checkpoint) -> None:
    op = Op("Linear", ["x", PROJECTION], ["y"])
    draft = draft_for_gpu(checkpoint, "int4", {"x": normal(1, 2, 64)}, {}, op, dtype=WIDE)
    lower_linear(multiply_with_zero_points)(draft)
    (node,) = draft.find("MatMulNBits", "com.microsoft")
    assert len(node.inputs) == 3


# Scales in float16


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_in_float16_cost_no_more_than_their_rounding(bits: int) -> None:
    weight = normal(6, 64)
    levels, scales = encode_rows(weight, bits, 32)
    half_levels, half_scales = encode_rows_half(weight, bits, 32)
    assert half_scales.dtype == np.float16
    np.testing.assert_array_equal(half_levels, levels)
    np.testing.assert_array_equal(half_scales, scales.astype(np.float16))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e-7])
def test_levels_of_small_weights_fit_what_float16_made_of_the_scale(bits: int, size: float) -> None:
    weight = np.float32(size) * normal(6, 64)
    packed, scales = encode_rows_half(weight, bits, 32)
    assert (scales != 0).all()
    stored = dequantize(unpack(packed, bits), scales.astype(np.float32), bits)
    # Half a step, or what a symmetric range lacks at its upper end: one step.
    step = np.repeat(np.abs(scales).astype(np.float32), 32, axis=1)
    assert (np.abs(stored - weight) <= 1.001 * step).all()
    assert np.median(np.abs(stored - weight) / step) <= 0.5


def test_scale_beyond_float16_is_refused_with_the_way_out() -> None:
    with pytest.raises(ExportError, match=r"scale of .*beyond the range of float16.*fp32"):
        encode_rows_half(np.full((1, 32), 1e7, np.float32), 4, 32)


def test_row_of_zeros_stays_zero() -> None:
    packed, scales = encode_rows_half(np.zeros((1, 32), np.float32), 4, 32)
    assert (dequantize(unpack(packed, 4), scales.astype(np.float32), 4) == 0).all()


# Convolution


@each_dtype
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("rewrite", [lower_fused_conv, lower_plain_conv])
def test_lowered_conv_preserves_columns_and_state(
    make_checkpoint: Callable[..., Checkpoint],
    rewrite: Pass,
    width: int,
    steps: int,
    dtype: ir.DataType,
) -> None:
    feeds = {"x": normal(1, steps, 64), "past": normal(1, 64, width - 1), "new": np.array([steps])}
    op = Op("CausalConv", ["x", CONV, "past", "new"], ["y", "present"])
    model = make_checkpoint(conv_L_cache=width)
    before, after = lower(model, "fp32", rewrite, feeds, op, dtype=dtype)
    close(after["y"], before["y"], dtype)
    # Copied, never computed.
    np.testing.assert_array_equal(after["present"].astype(np.float32), before["present"])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_padded_conv_goes_on_from_the_last_real_columns(
    make_checkpoint: Callable[..., Checkpoint], width: int, count: int
) -> None:
    feeds = {"x": normal(1, 5, 64), "past": normal(1, 64, width - 1), "new": np.array([count])}
    host = {CONV_ENDS: np.arange(count, count + width - 1)}
    op = Op("CausalConv", ["x", CONV, "past", "new"], ["y", "present"])
    model = make_checkpoint(conv_L_cache=width)
    before, after = lower(model, "fp32", lower_padded_conv, feeds, op, host=host)
    close(after["y"][:, :count], before["y"][:, :count], WIDE)
    np.testing.assert_array_equal(after["present"], before["present"])


# Attention


@each_dtype
@pytest.mark.parametrize(("held", "count", "steps"), [(0, 5, 5), (0, 3, 5), (6, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("rewrite", [lower_attention, lower_attention_apart])
def test_lowered_attention_preserves_a_prompt_its_padding_and_a_step(
    checkpoint: Checkpoint, rewrite: Pass, held: int, count: int, steps: int, dtype: ir.DataType
) -> None:
    attend(checkpoint, rewrite, held, count, steps, dtype)


@each_dtype
def test_fused_attention_preserves_tokens_appended_to_others(
    checkpoint: Checkpoint, dtype: ir.DataType
) -> None:
    attend(checkpoint, lower_attention, 6, 5, 5, dtype)


def attend(
    checkpoint: Checkpoint, rewrite: Pass, held: int, count: int, steps: int, dtype: ir.DataType
) -> None:
    feeds = {
        "query": normal(1, steps, 96),
        "key": normal(1, steps, 32, seed=1),
        "value": normal(1, steps, 32, seed=2),
        "past_key": normal(1, 2, 24, 16),
        "past_value": normal(1, 2, 24, 16, seed=1),
        "past": np.array([held]),
        "new": np.array([count]),
    }
    host = {
        POSITIONS: held + np.minimum(np.arange(steps), count - 1)[None],
        SEQLENS: np.array([held + count - 1], np.int32),
        TOTAL: np.array([held + steps], np.int32),
    }
    takes = ["query", "key", "value", *HEAD_NORMS, "past_key", "past_value", "past", "new"]
    op = Op("CachedAttention", takes, ["y", "present_key", "present_value"], {"epsilon": 1e-5})
    before, after = lower(checkpoint, "fp32", rewrite, feeds, op, host=host, dtype=dtype)
    close(after["y"][:, :count], before["y"][:, :count], dtype)
    for name in ("present_key", "present_value"):
        # What lies past a row's length is never read.
        real = np.s_[:, :, : held + count]
        close(after[name][real], before[name][real], dtype)


# Experts

DENSE, GATHERED = (
    {"dense": lower_dense_experts, "gathered": lower_gathered_experts}[name](
        multiply_with_zero_points
    )
    for name in ("dense", "gathered")
)
LOWERED: Mapping[str, Pass] = {"fused": lower_fused_experts, "dense": DENSE, "gathered": GATHERED}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "as LFM2": {"routed_scaling_factor": 1.0},
    "scaled": {"routed_scaling_factor": 2.5},
    "not normalized": {"norm_topk_prob": False},
    "one chosen": {"num_experts_per_tok": 1},
    "all chosen": {"num_experts_per_tok": 5},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_lowering = pytest.mark.parametrize("name", LOWERED)
MIX = Op("Experts", ["x", "scores", "probabilities", *EXPERTS], ["y"])


def route(steps: int) -> Arrays:
    """Random scores, in which a bias prefers other experts than the probabilities do."""
    probabilities = 1 / (1 + np.exp(-2 * normal(1, 7, 5)[:, :steps]))
    return {
        "x": normal(1, 7, 64)[:, :steps],
        "scores": probabilities + np.array([0.4, -0.4, 0, 0.3, -0.2], np.float32),
        "probabilities": probabilities,
    }


def mix(
    checkpoint: Checkpoint, precision: Precision, name: str, feeds: Arrays, dtype: ir.DataType
) -> tuple[Array, Array]:
    before, after = lower(checkpoint, precision, LOWERED[name], feeds, MIX, dtype=dtype)
    return before["y"], after["y"]


def close_mixture(
    after: Array, before: Array, precision: Precision, name: str, dtype: ir.DataType
) -> None:
    if (precision, name, dtype) == ("int8", "fused", WIDE):
        # The CPU's kernel for 8 bits in float32 rounds activations to 8 bits, unasked: two
        # products in a row with half a percent of noise each. 1.0 to 1.4 % seen.
        error = np.sqrt(((after - before) ** 2).mean() / (before**2).mean())
        assert error < 0.03
    else:
        close(after, before, dtype)


@each_type
@each_option
@each_lowering
def test_lowered_experts_preserve_mixtures(
    make_checkpoint: Callable[..., Checkpoint],
    precision: Precision,
    name: str,
    options: dict[str, Any],
    dtype: ir.DataType,
) -> None:
    feeds = route(1 if name == "gathered" else 7)
    before, after = mix(make_checkpoint(**options), precision, name, feeds, dtype)
    close_mixture(after, before, precision, name, dtype)


@pytest.mark.parametrize("precision", ["fp32", *INTEGERS])
def test_gathered_experts_are_dense_ones_of_each_token(
    checkpoint: Checkpoint, precision: Precision
) -> None:
    feeds = route(7)
    _, dense = mix(checkpoint, precision, "dense", feeds, WIDE)
    for step in range(7):
        alone = {name: array[:, step : step + 1] for name, array in feeds.items()}
        _, gathered = mix(checkpoint, precision, "gathered", alone, WIDE)
        close(gathered, dense[:, step : step + 1], WIDE)


@pytest.mark.parametrize("name", ["dense", "gathered"])
@pytest.mark.parametrize("precision", ["fp32", *INTEGERS])
@pytest.mark.parametrize("tied", [(1, 3), (0, 1, 2, 3, 4)], ids=["two", "all"])
def test_no_more_experts_are_chosen_where_some_score_alike(
    checkpoint: Checkpoint, precision: Precision, name: str, tied: tuple[int, ...]
) -> None:
    probabilities = np.array([[[0.2, 0.6, 0.9, 0.6, 0.1]]], np.float32)
    probabilities[..., list(tied)] = 0.6
    feeds = {"x": normal(1, 1, 64), "scores": probabilities, "probabilities": probabilities}
    before, after = mix(checkpoint, precision, name, feeds, WIDE)
    # Two are chosen, and of those that score alike the first, as in numpy.
    close(after, before, WIDE)


def test_fused_kernel_chooses_one_of_two_that_score_alike(checkpoint: Checkpoint) -> None:
    probabilities = np.array([[[0.2, 0.6, 0.9, 0.6, 0.1]]], np.float32)
    feeds = {"x": normal(1, 1, 64), "scores": probabilities, "probabilities": probabilities}
    first, after = mix(checkpoint, "int4", "fused", feeds, WIDE)
    # Were the other one likelier by a hair, it would be chosen.
    hair = np.array([0, 0, 0, 1e-6, 0], np.float32)
    second, _ = mix(checkpoint, "int4", "fused", {**feeds, "scores": probabilities + hair}, WIDE)
    largest = np.abs(first).max()
    errors = [np.abs(after - either).max() / largest for either in (first, second)]
    assert min(errors) < WIDE_ERROR < 0.01 < max(errors)


@each_lowering
@pytest.mark.parametrize("precision", ["fp32", *INTEGERS])
def test_lowered_experts_weigh_tiny_probabilities_with_the_epsilon(
    checkpoint: Checkpoint, precision: Precision, name: str
) -> None:
    # Two of them are 1e-6 together, as much as is added to their sum before the division.
    probabilities = np.full((1, 1, 5), 5e-7, np.float32)
    feeds = {
        "x": 8 * normal(1, 1, 64),
        "scores": probabilities * np.arange(1, 6, dtype=np.float32),
        "probabilities": probabilities,
    }
    before, after = mix(checkpoint, precision, name, feeds, WIDE)
    close_mixture(after, before, precision, name, WIDE)


@each_lowering
def test_experts_that_nothing_speaks_for_give_nothing(checkpoint: Checkpoint, name: str) -> None:
    zeros = np.zeros((1, 1, 5), np.float32)
    feeds = {"x": normal(1, 1, 64), "scores": zeros, "probabilities": zeros}
    _, after = mix(checkpoint, "int4", name, feeds, WIDE)
    assert (after == 0).all()
