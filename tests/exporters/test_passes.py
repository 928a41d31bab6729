"""Each pass preserves outputs: nodes in numpy before it, in ONNX Runtime after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.draft import MICROSOFT, Draft
from exporters.passes.clean_up import clean_up, remove_unused, share_common
from exporters.passes.lower_attention import lower_attention
from exporters.passes.lower_conv import lower_conv
from exporters.passes.lower_embedding import lower_embedding
from exporters.passes.lower_experts import lower_experts
from exporters.passes.lower_lengths import lower_lengths, lower_take_last
from exporters.passes.lower_linear import lower_linear
from exporters.passes.lower_norm import lower_norm
from exporters.passes.lower_parameters import lower_parameters
from exporters.passes.weights import interleave
from exporters.quantize.plan import Precision
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.rotary import compute_rotary

from .graphs import Op, before_and_after, evaluate, read_as_stored, run_in_ort, sketch
from .semantic_ops import Array, rotate

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.0.operator_norm.weight"
PROJECTION = "model.layers.0.conv.in_proj.weight"
CONV = "model.layers.0.conv.conv.weight"
HEAD_NORMS = [f"model.layers.1.self_attn.{x}_layernorm.weight" for x in "qk"]
BIAS = "model.layers.2.feed_forward.expert_bias"
EXPERTS = [
    f"model.layers.2.feed_forward.experts.{e}.{w}.weight"
    for e in range(5)
    for w in ("w1", "w3", "w2")
]

# Three rows that hold 0, 6 and 2 tokens and get 5, 1 and 3.
IDS = np.array([[4, 5, 6, 7, 8], [9, -1, -1, -1, -1], [3, 0, 99, -1, -1]])
REAL = IDS >= 0
TOTAL = np.array([5, 7, 5])
MASK = (np.arange(9) < TOTAL[:, None]).astype(np.int64)
NEW = np.array([5, 1, 3])

FLOATS: Sequence[Precision] = ("fp32", "fp16")
INTEGERS: Sequence[Precision] = ("int8", "int4")

# A float32 sum of up to 160 products of numbers around 1: at most 3e-6 seen.
FLOAT_ORDER = 1e-5


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def close(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, atol=FLOAT_ORDER, rtol=0)


def rms(array: Array) -> float:
    return float(np.sqrt((array**2).mean()))


def count_operators(draft: Draft) -> Counter[str]:
    return Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in draft.graph)


# Lengths and positions


def test_lower_lengths_counts_ids_and_mask(checkpoint: Checkpoint) -> None:
    feeds = {"ids": IDS, "mask": MASK}
    before, after = before_and_after(
        checkpoint, "fp32", [lower_lengths], feeds, Op("Lengths", ["ids", "mask"], ["past", "new"])
    )
    assert before["past"].tolist() == after["past"].tolist() == [0, 6, 2]
    assert before["new"].tolist() == after["new"].tolist() == NEW.tolist()


@pytest.mark.parametrize("keep", [1, 2, 5, 7])
def test_lower_take_last_preserves_each_rows_last_positions(
    checkpoint: Checkpoint, keep: int
) -> None:
    feeds = {"x": normal(3, 5, 64), "new": NEW, "keep": np.array([keep])}
    op = Op("TakeLast", ["x", "new", "keep"], ["y"])
    before, after = before_and_after(checkpoint, "fp32", [lower_take_last], feeds, op)
    np.testing.assert_array_equal(after["y"], before["y"])
    np.testing.assert_array_equal(after["y"][:, -1], feeds["x"][[0, 1, 2], NEW - 1])


# Embedding and projections


@pytest.mark.parametrize("precision", [*FLOATS, *INTEGERS])
def test_lower_embedding_preserves_rows(checkpoint: Checkpoint, precision: Precision) -> None:
    op = Op("Embedding", ["ids", EMBEDDING], ["y"])
    before, after = before_and_after(checkpoint, precision, [lower_embedding], {"ids": IDS}, op)
    # Looked up and scaled, one product a number: nothing is left to round differently.
    np.testing.assert_array_equal(after["y"], before["y"])


@pytest.mark.parametrize("precision", FLOATS)
def test_lower_linear_preserves_products(checkpoint: Checkpoint, precision: Precision) -> None:
    op = Op("Linear", ["x", PROJECTION], ["y"])
    before, after = before_and_after(
        checkpoint, precision, [lower_linear], {"x": normal(2, 5, 64)}, op
    )
    close(after["y"], before["y"])


@pytest.mark.parametrize("precision", INTEGERS)
def test_lower_linear_to_integers_preserves_products_up_to_rounded_activations(
    checkpoint: Checkpoint, precision: Precision
) -> None:
    x, op = normal(2, 5, 64), Op("Linear", ["x", PROJECTION], ["y"])
    before, after = before_and_after(checkpoint, precision, [lower_linear], {"x": x}, op)
    # Each activation moves by at most half a step, a 127th of its row's largest.
    weight = read_as_stored(checkpoint, precision)(PROJECTION)
    half_step = np.abs(x).max(-1, keepdims=True) / 127 / 2
    bound = half_step * np.abs(weight).sum(1)
    error = np.abs(after["y"] - before["y"])
    assert (error <= bound + FLOAT_ORDER).all()
    # The bound would find a mistake: it is small beside the products.
    assert bound.max() < 0.2 * before["y"].std()


@pytest.mark.parametrize("precision", INTEGERS)
def test_lowered_table_and_head_share_their_bytes(
    checkpoint: Checkpoint, precision: Precision
) -> None:
    draft = sketch(
        checkpoint.config,
        precision,
        {"ids": IDS},
        Op("Embedding", ["ids", EMBEDDING], ["x"]),
        Op("Linear", ["x", EMBEDDING], ["y"]),
    )
    lower_embedding(draft)
    lower_linear(draft)
    assert [d.name for d in draft.book.declared.values() if not d.alias_of] == [
        f"{EMBEDDING}.q8",
        f"{EMBEDDING}.scales",
    ]
    assert len(draft.book.jobs) == 1


# Norms


def test_lower_norm_preserves_a_norm(checkpoint: Checkpoint) -> None:
    op = Op("RMSNorm", ["x", NORM], ["y"], {"epsilon": 1e-5})
    before, after = before_and_after(checkpoint, "fp32", [lower_norm], {"x": normal(2, 5, 64)}, op)
    close(after["y"], before["y"])


@pytest.mark.parametrize("epsilon", [1e-5, 1.0])
def test_lower_norm_preserves_a_residual_sum_and_its_norm(
    checkpoint: Checkpoint, epsilon: float
) -> None:
    draft = sketch(
        checkpoint.config,
        "fp32",
        feeds := {"x": normal(2, 5, 64), "mixed": normal(2, 5, 64, seed=1)},
        Op("Add", ["x", "mixed"], ["sum"]),
        Op("RMSNorm", ["sum", NORM], ["normed"], {"epsilon": epsilon}),
        # The sum goes on past the norm, as the residual stream does.
        Op("Mul", ["sum", "normed"], ["y"]),
    )
    before = evaluate(draft.graph, checkpoint.config, checkpoint.read, feeds)
    lower_norm(draft)
    assert count_operators(draft) == {f"{MICROSOFT}::SkipSimplifiedLayerNormalization": 1, "Mul": 1}
    close(run_in_ort(draft, checkpoint, feeds)["y"], before["y"])


# Convolution


@pytest.mark.parametrize("width", [2, 3, 4])
def test_lower_conv_preserves_columns_and_each_rows_state(
    make_checkpoint: Callable[..., Checkpoint], width: int
) -> None:
    feeds = {"x": normal(3, 5, 64), "past": normal(3, 64, width - 1), "new": NEW}
    op = Op("CausalConv", ["x", CONV, "past", "new"], ["y", "present"])
    before, after = before_and_after(
        make_checkpoint(conv_L_cache=width), "fp32", [lower_conv], feeds, op
    )
    close(after["y"][REAL], before["y"][REAL])
    np.testing.assert_array_equal(after["present"], before["present"])


def test_lower_conv_leaves_the_state_of_a_row_without_tokens(checkpoint: Checkpoint) -> None:
    feeds = {"x": normal(2, 1, 64), "past": normal(2, 64, 3), "new": np.array([1, 0])}
    op = Op("CausalConv", ["x", CONV, "past", "new"], ["y", "present"])
    _, after = before_and_after(checkpoint, "fp32", [lower_conv], feeds, op)
    np.testing.assert_array_equal(after["present"][1], feeds["past"][1])


# Attention


def attend(checkpoint: Checkpoint, ids: Array, mask: Array) -> None:
    """Compare attention over random buffers before and after its passes."""
    batch, steps = ids.shape
    feeds = {
        "ids": ids,
        "mask": mask,
        "query": normal(batch, steps, 96),
        "key": normal(batch, steps, 32, seed=1),
        "value": normal(batch, steps, 32, seed=2),
        "past_key": normal(batch, 2, 24, 16),
        "past_value": normal(batch, 2, 24, 16, seed=1),
    }
    takes = ["query", "key", "value", *HEAD_NORMS, "past_key", "past_value", "past", "new"]
    before, after = before_and_after(
        checkpoint,
        "fp32",
        [lower_lengths, lower_attention],
        feeds,
        Op("Lengths", ["ids", "mask"], ["past", "new"]),
        Op("CachedAttention", takes, ["y", "present_key", "present_value"], {"epsilon": 1e-5}),
    )
    close(after["y"][ids >= 0], before["y"][ids >= 0])
    # What lies past a row's length is never read, and kernels may leave it undefined.
    for row, total in enumerate(mask.sum(1)):
        for name in ("present_key", "present_value"):
            close(after[name][row, :, :total], before[name][row, :, :total])


def test_lower_attention_preserves_rows_of_unequal_length(checkpoint: Checkpoint) -> None:
    attend(checkpoint, IDS, MASK)


def test_lower_attention_preserves_a_step(checkpoint: Checkpoint) -> None:
    attend(checkpoint, IDS[:, :1], MASK)


def test_lower_attention_preserves_a_step_in_which_a_row_rests(checkpoint: Checkpoint) -> None:
    attend(checkpoint, np.array([[4], [-1], [6]]), MASK)


def test_rotary_tables_turn_as_the_model_does() -> None:
    cos, sin = compute_rotary(theta=1e6, head_dim=16, length=40)
    assert cos.shape == sin.shape == (40, 8)
    assert cos.dtype == sin.dtype == np.float32
    x = normal(16)
    for position in (0, 1, 39):
        low, high = x[:8], x[8:]
        turned = np.concatenate(
            [low * cos[position] - high * sin[position], high * cos[position] + low * sin[position]]
        )
        np.testing.assert_allclose(turned, rotate(x, position, 1e6), atol=FLOAT_ORDER)


# Experts


def mix(checkpoint: Checkpoint, precision: Precision) -> tuple[Array, Array]:
    """Random scores, in which a bias prefers other experts than the probabilities do."""
    probabilities = 1 / (1 + np.exp(-2 * normal(2, 7, 5)))
    feeds = {
        "x": normal(2, 7, 64),
        "scores": probabilities + np.array([0.4, -0.4, 0, 0.3, -0.2], np.float32),
        "probabilities": probabilities,
    }
    plain, biased = (np.argsort(-feeds[n])[..., :2] for n in ("probabilities", "scores"))
    assert (np.sort(plain) != np.sort(biased)).any()
    op = Op("Experts", ["x", "scores", "probabilities", *EXPERTS], ["y"])
    before, after = before_and_after(checkpoint, precision, [lower_experts], feeds, op)
    return before["y"], after["y"]


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "as LFM2": {"routed_scaling_factor": 1.0},
    "scaled": {"routed_scaling_factor": 2.5},
    "not normalized": {"norm_topk_prob": False},
    "one chosen": {"num_experts_per_tok": 1},
    "all chosen": {"num_experts_per_tok": 5},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_option
@pytest.mark.parametrize("precision", FLOATS)
def test_lower_experts_preserves_mixtures(
    make_checkpoint: Callable[..., Checkpoint], precision: Precision, options: dict[str, Any]
) -> None:
    before, after = mix(make_checkpoint(**options), precision)
    close(after, before)


@each_option
@pytest.mark.parametrize("precision", INTEGERS)
def test_lower_experts_to_integers_preserves_mixtures_up_to_rounded_activations(
    make_checkpoint: Callable[..., Checkpoint], precision: Precision, options: dict[str, Any]
) -> None:
    before, after = mix(make_checkpoint(**options), precision)
    # Two products in a row, each of activations rounded to a 127th of their largest: some
    # 0.5 % of noise each. 1.1 to 1.3 % seen; one expert weighed wrongly by a tenth is more.
    assert rms(after - before) < 0.03 * rms(before)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # Of floats, the kernel is given log p, about -15: float32 rounds that to a relative 1e-6 of
    # p. Of integers, activations are rounded, as above.
    [("fp32", 1e-5), ("fp16", 1e-5), ("int8", 0.03), ("int4", 0.03)],
)
def test_lower_experts_weighs_tiny_probabilities_with_the_epsilon(
    checkpoint: Checkpoint, precision: Precision, tolerance: float
) -> None:
    # Two of them are 1e-6 together, as much as is added to their sum before the division.
    probabilities = np.full((1, 1, 5), 5e-7, np.float32)
    feeds = {
        "x": 8 * normal(1, 1, 64),
        "scores": probabilities * np.arange(1, 6, dtype=np.float32),
        "probabilities": probabilities,
    }
    op = Op("Experts", ["x", "scores", "probabilities", *EXPERTS], ["y"])
    before, after = before_and_after(checkpoint, precision, [lower_experts], feeds, op)
    assert rms(after["y"] - before["y"]) < tolerance * rms(before["y"])


def test_interleave_puts_each_gate_row_before_its_up_row() -> None:
    gate, up = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
    assert interleave(gate, up).tolist() == [[1, 2], [5, 6], [3, 4], [7, 8]]


# Parameters that stay as they are


def test_lower_parameters_preserves_the_bias(checkpoint: Checkpoint) -> None:
    op = Op("Add", ["probabilities", BIAS], ["scores"])
    before, after = before_and_after(
        checkpoint, "int4", [lower_parameters], {"probabilities": normal(2, 3, 5)}, op
    )
    np.testing.assert_array_equal(after["scores"], before["scores"])


# Cleaning up


def test_clean_up_turns_a_sequence_into_a_split(
    checkpoint: Checkpoint, trace_once: Callable[..., ir.Graph]
) -> None:
    config = checkpoint.config
    graph = trace_once(config, 0).clone()
    feeds = {
        "x": normal(2, 3, 64),
        "states_0": normal(2, 64, 3),
        "past_lengths": np.array([2, 0]),
        "new_lengths": np.array([3, 1]),
    }

    def read(name: str) -> Array:
        return checkpoint.read(f"model.layers.0.{name}")

    draft = sketch(config, "fp32", {})
    draft.graph = graph
    before = evaluate(graph, config, read, feeds)
    assert count_operators(draft)["SequenceAt"] == 3
    clean_up(draft)
    left = count_operators(draft)
    assert not left.keys() & {"SplitToSequence", "SequenceAt", "Constant"}
    assert left["Split"] == 1
    after = evaluate(graph, config, read, feeds)
    assert list(after) == list(before)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_remove_unused_drops_what_no_output_needs(checkpoint: Checkpoint) -> None:
    feeds = {"x": normal(2, 64)}
    draft = sketch(
        checkpoint.config,
        "fp32",
        feeds,
        Op("Add", ["x", "x"], ["y"]),
        Op("Mul", ["x", NORM], ["z"]),
    )
    draft.graph.outputs.pop()
    remove_unused(draft)
    assert count_operators(draft) == {"Add": 1}
    assert NORM not in draft.graph.initializers
    np.testing.assert_array_equal(run_in_ort(draft, checkpoint, feeds)["y"], 2 * feeds["x"])


def test_share_common_computes_equal_nodes_once(checkpoint: Checkpoint) -> None:
    feeds = {"x": normal(2, 64), "y": normal(2, 64, seed=1)}
    draft = sketch(
        checkpoint.config,
        "fp32",
        feeds,
        Op("Add", ["x", "y"], ["a"]),
        Op("Add", ["x", "y"], ["b"]),
        Op("Mul", ["a", "b"], ["c"]),
        Op("Add", ["y", "y"], ["d"]),
        Op("Add", ["c", "d"], ["e"]),
    )
    before = evaluate(draft.graph, checkpoint.config, checkpoint.read, feeds)
    share_common(draft)
    assert count_operators(draft) == {"Add": 3, "Mul": 1}
    np.testing.assert_array_equal(run_in_ort(draft, checkpoint, feeds)["e"], before["e"])
