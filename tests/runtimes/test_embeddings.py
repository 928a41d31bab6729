"""The text part of a vision-language model: as transformers computes it, over ids and embeddings.

Embeddings that are no token's come from transformers' own vision tower, or are random ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lfm2_deploy import export
from lfm2_deploy.contracts import EmbeddingSession, FloatArray, Runtime
from lfm2_deploy.errors import ContextOverflowError, ExportError, GenerationError
from lfm2_deploy.registry import find_runtime
from runtimes.ort_session import PREFILL_CHUNK

from ..logits import decode_row, make_rows, relative_error  # noqa: TID252
from ..vision import IMAGE_TOKEN, embed, look_at, run_text_part  # noqa: TID252

KINDS = ["dense", "moe"]
# As in tests/test_exactness.py: two float32 implementations sum in different orders, at most 3e-6
# of the largest logit; a part left out moves logits by more than 1e-1.
AGAINST_TRANSFORMERS = 1e-4
# One implementation, which sums in another order for one row than for many: at most 4e-6.
FLOAT_ORDER = 2e-5
# As there: with 8-bit activations a last bit may move one by a step of 1/127, at most 1e-2.
ROUNDED_ACTIVATIONS = 3e-2
WIDTH = 128

Load = Callable[..., Runtime]


@pytest.fixture(scope="session")
def load(vision_checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The text part of a kind of model in a runtime; each is exported once."""
    root = tmp_path_factory.mktemp("text-parts")

    @functools.cache
    def make(kind: str, precision: str, embeds: bool, target: str) -> Runtime:
        bundle = export(
            str(vision_checkpoints[kind]),
            root / f"{kind}-{precision}-{embeds}-{target}",
            target=target,
            precision=precision,
            part="text",
            inputs_embeds=embeds,
            chunk=7 if target == "npu" else None,
            canary=False,
        )
        if target == "npu":
            ran_on_cpu: Runtime = find_runtime("openvino")(bundle, threads=1, device="cpu")
            return ran_on_cpu
        opened: Runtime = find_runtime("ort")(bundle, threads=1)
        return opened

    return lambda kind, precision="fp32", embeds=True, target="cpu": make(
        kind, precision, embeds, target
    )


def open_session(runtime: Runtime, batch_size: int = 1) -> EmbeddingSession:
    assert runtime.info.capabilities.takes_embeddings
    return cast("EmbeddingSession", runtime.open(batch_size, 1024))


def draw(count: int, seed: int = 3) -> FloatArray:
    """Embeddings that are no token's, of the size that tokens' have."""
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


# By token ids


@pytest.mark.parametrize("embeds", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_give_what_transformers_language_model_and_head_give(
    kind: str, embeds: bool, load: Load, vision_models: Mapping[str, Any]
) -> None:
    model, (row,) = vision_models[kind], make_rows(24)
    session = load(kind, embeds=embeds).open(1, 64)
    # A prompt, two pieces appended to it, and single steps.
    found = [
        session.prefill([row[:9]]),
        session.prefill([row[9:16]]),
        session.prefill([row[16:18]]),
    ]
    logits = np.concatenate([*found, decode_row(session, row[18:])])
    places = [8, 15, *range(17, 24)]
    expected = run_text_part(model, embed(model, row))[places]
    assert relative_error(logits, expected) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_look_up_beside_the_decoder_gives_the_bits_of_the_one_inside(
    kind: str, precision: str, load: Load
) -> None:
    (row,) = make_rows(20)
    scores = []
    for embeds in (False, True):
        session = load(kind, precision, embeds).open(1, 64)
        scores.append([*session.score([row[:15]])[0], *decode_row(session, row[15:])])
    # The same kernels on the same numbers.
    assert np.array_equal(*scores)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_give_what_each_gives_alone(kind: str, load: Load) -> None:
    runtime, rows = load(kind, "int4"), make_rows(5, 3, 11)
    together = runtime.open(3, 64)
    prompts, steps = together.prefill(rows), together.decode([9, None, 10])
    for index, (row, token) in enumerate(zip(rows, (9, None, 10), strict=True)):
        alone = runtime.open(1, 64)
        assert np.array_equal(prompts[index], alone.prefill([row])[0])
        if token is not None:
            assert np.array_equal(steps[index], alone.decode([token])[0])
    assert together.lengths == (6, 3, 12)


def test_step_without_a_token_leaves_the_row(load: Load) -> None:
    session = load("dense").open(1, 64)
    session.prefill([[8, 9]])
    session.decode([None])
    assert session.lengths == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_join_and_leave_go_on_as_they_would_alone(kind: str, load: Load) -> None:
    runtime, rows = load(kind), make_rows(6, 9)
    places = runtime.open_rows(2)  # type: ignore[attr-defined]
    expected = []
    for row in rows:
        session = runtime.open(1, 64)
        session.prefill([row])
        places.join(session.snapshot())
        expected.append(session.decode([11])[0])
    assert relative_error(places.decode([11, 11]), np.stack(expected)) < FLOAT_ORDER


# By embeddings


def append_mixed(session: EmbeddingSession, ids: Sequence[int], foreign: FloatArray) -> FloatArray:
    """Five tokens, foreign embeddings, three tokens in two pieces, and the rest one by one."""
    pieces = [
        session.prefill([ids[:5]]),
        session.prefill_embeddings([foreign]),
        session.prefill([ids[5:7]]),
        session.prefill([ids[7:8]]),
    ]
    return np.concatenate([*pieces, decode_row(session, ids[8:])])


def expect_mixed(model: Any, ids: Sequence[int], foreign: FloatArray) -> FloatArray:
    before, after = embed(model, ids[:5]), embed(model, ids[5:])
    logits = run_text_part(model, np.concatenate([before, foreign, after]))
    start = 5 + len(foreign)
    return logits[[4, start - 1, start + 1, *range(start + 2, len(logits))]]


@pytest.mark.parametrize("count", [1, 7, PREFILL_CHUNK + 88])
@pytest.mark.parametrize("kind", KINDS)
def test_foreign_embeddings_among_tokens_give_what_transformers_gives(
    kind: str, count: int, load: Load, vision_models: Mapping[str, Any]
) -> None:
    model, (ids,), foreign = vision_models[kind], make_rows(12), draw(count)
    logits = append_mixed(open_session(load(kind)), ids, foreign)
    assert relative_error(logits, expect_mixed(model, ids, foreign)) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("kind", KINDS)
def test_image_from_transformers_tower_gives_the_whole_models_logits(
    kind: str, load: Load, vision_models: Mapping[str, Any]
) -> None:
    ids = [8, 9, *[IMAGE_TOKEN] * 4, 10, 11, 12]
    image, expected = look_at(vision_models[kind], ids)
    session = open_session(load(kind))
    session.prefill([ids[:2]])
    logits = [session.prefill_embeddings([image]), session.prefill([ids[6:8]])]
    logits.append(session.decode([ids[8]]))
    assert relative_error(np.concatenate(logits), expected[[5, 7, 8]]) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_tokens_are_those_tokens(
    kind: str, load: Load, vision_models: Mapping[str, Any]
) -> None:
    (row,) = make_rows(20)
    by_ids, by_rows = (open_session(load(kind)) for _ in range(2))
    expected = [by_ids.prefill([row]), by_ids.decode([9])]
    found = [by_rows.prefill_embeddings([embed(vision_models[kind], row)]), by_rows.decode([9])]
    # Embeddings are stored as they are in fp32, so the same numbers go in.
    assert np.array_equal(found, expected)


def test_float16_embeddings_are_taken_as_their_numbers(load: Load) -> None:
    half = draw(6).astype(np.float16)
    first, second = (open_session(load("dense")) for _ in range(2))
    wide = half.astype(np.float32)
    assert np.array_equal(
        first.prefill_embeddings([cast("FloatArray", half)]), second.prefill_embeddings([wide])
    )


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_bundles_own_look_up_are_those_tokens(
    kind: str, precision: str, load: Load
) -> None:
    runtime, (row,) = load(kind, precision), make_rows(20)
    rows = runtime.embedder.look_up(np.array([row]))[0]  # type: ignore[attr-defined]
    by_ids, by_rows = open_session(runtime), open_session(runtime)
    expected = [by_ids.prefill([row]), by_ids.decode([9])]
    assert np.array_equal([by_rows.prefill_embeddings([rows]), by_rows.decode([9])], expected)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_embeddings_in_pieces_are_the_same_prompt(precision: str, load: Load) -> None:
    foreign, runtime = draw(30), load("dense", precision)
    whole, pieces = open_session(runtime), open_session(runtime)
    expected = whole.prefill_embeddings([foreign])
    for start, stop in ((0, 1), (1, 12), (12, 30)):
        logits = pieces.prefill_embeddings([foreign[start:stop]])
    limit = FLOAT_ORDER if precision == "fp32" else ROUNDED_ACTIVATIONS
    assert relative_error(logits, expected) < limit
    assert pieces.lengths == whole.lengths == (30,)


def test_rows_of_embeddings_differ_in_length(load: Load) -> None:
    session = open_session(load("dense"), batch_size=3)
    logits = session.prefill_embeddings([draw(4), draw(0), draw(9, seed=8)])
    alone = open_session(load("dense")).prefill_embeddings([draw(9, seed=8)])
    assert session.lengths == (4, 0, 9)
    assert np.array_equal(logits[2], alone[0])


def test_embeddings_can_be_taken_back_and_kept(load: Load) -> None:
    session, foreign = open_session(load("moe")), draw(7)
    session.prefill([[8, 9, 10]])
    mark = session.mark()
    expected = session.prefill_embeddings([foreign])
    saved = session.snapshot()
    step = session.decode([11])
    session.rewind(mark)
    assert np.array_equal(session.prefill_embeddings([foreign]), expected)
    session.reset()
    session.restore(saved)
    assert np.array_equal(session.decode([11]), step)


def test_tokens_proposed_after_embeddings_are_the_tokens_appended(load: Load) -> None:
    session, other = open_session(load("dense")), open_session(load("dense"))
    for one in (session, other):
        one.prefill_embeddings([draw(5)])
    (logits,) = session.propose([[8, 9, 10]])
    session.accept([2])
    expected = other.score([[8, 9]])[0]
    assert relative_error(logits[:2], expected) < FLOAT_ORDER
    assert relative_error(session.decode([12]), other.decode([12])) < FLOAT_ORDER


# Refused


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([draw(3)[:, :64]], r"expected floats \[positions, 128\]"),
        ([draw(3)[None]], r"\[1, 3, 128\]"),
        ([np.zeros((3, WIDTH), np.int64)], "int64"),
        ([np.full((2, WIDTH), np.nan, np.float32)], "not finite"),
        ([draw(0)], "no token"),
        ([], "0 rows were given"),
        ([draw(1), draw(1)], "2 rows were given"),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "npu"])
def test_embeddings_that_cannot_be_taken_change_nothing(
    rows: list[Any], told: str, target: str, load: Load
) -> None:
    session = open_session(load("dense", embeds=target == "cpu", target=target))
    session.prefill([[8, 9]])
    with pytest.raises(GenerationError, match=told):
        session.prefill_embeddings(rows)
    assert session.lengths == (2,)


def test_embeddings_beyond_the_capacity_are_refused(load: Load) -> None:
    session = cast("EmbeddingSession", load("dense").open(1, 8))
    session.prefill([[8, 9]])
    with pytest.raises(ContextOverflowError, match="2 tokens and 7 more"):
        session.prefill_embeddings([draw(7)])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_decoder_of_ids_refuses_embeddings_by_name(batch_size: int, load: Load) -> None:
    runtime = load("moe", embeds=False)
    assert not runtime.info.capabilities.takes_embeddings
    session = cast("EmbeddingSession", runtime.open(batch_size, 64))
    with pytest.raises(GenerationError, match="token ids"):
        session.prefill_embeddings([draw(1)] * batch_size)


# Other targets


@pytest.mark.parametrize("kind", KINDS)
def test_npus_graphs_take_embeddings_as_they_are(
    kind: str, load: Load, vision_models: Mapping[str, Any]
) -> None:
    model, (ids,), foreign = vision_models[kind], make_rows(12), draw(17)
    logits = append_mixed(open_session(load(kind, embeds=False, target="npu")), ids, foreign)
    assert relative_error(logits, expect_mixed(model, ids, foreign)) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("npu", "takes embeddings as it is: leave --inputs-embeds out"),
        ("qnn", "takes token ids only"),
        ("webgpu", "takes token ids only: leave --inputs-embeds out, or choose --target cpu"),
        ("directml", "takes token ids only"),
        ("igpu", "takes token ids only"),
        ("openvino-cpu", "takes token ids only"),
    ],
)
def test_target_that_has_no_such_decoder_is_refused_by_name(
    target: str, told: str, tmp_path: Path
) -> None:
    precision = "int8" if target == "qnn" else "int4"
    with pytest.raises(ExportError, match=f"target {target} {told}"):
        export(
            "synthetic:tiny-dense",
            tmp_path / "x",
            target=target,
            precision=precision,
            inputs_embeds=True,
        )
    assert not (tmp_path / "x").exists()
