"""Sessions on graphs for GPUs, executed by the CPU provider: whatever the host does is the same.

What a GPU's kernels do is in test_webgpu.py; DirectML's are executed nowhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray, NamedStates, Runtime
from lfm2_deploy.errors import ContextOverflowError, GenerationError, RuntimeUnavailableError
from lfm2_deploy.registry import find_runtime
from runtimes import gpu_session, gpu_shapes
from runtimes.gpu_model import GpuRuntime
from runtimes.gpu_session import GpuSession
from runtimes.separate_rows import SeparateRows

from ..logits import decode_row, generate, make_rows, relative_error, run_transformers  # noqa: TID252

KINDS = ["dense", "moe"]
TARGETS = ["webgpu", "directml"]
PRECISIONS = ["fp32", "fp16", "int8", "int4"]
CASES = [(kind, target) for kind in KINDS for target in TARGETS]
each_case = pytest.mark.parametrize(("kind", "target"), CASES)
CAPACITY = 64

# Shares of the largest logit. Two float32 implementations sum in different orders: at most
# 3e-6 over these six layers.
AGAINST_TRANSFORMERS = 1e-4
# The same kernels, for one token and for many: 4e-6 in float32.
FLOAT_ORDER = 2e-5
# In float16 another order is another rounding, by 2^-11 each time: 5e-3 of the median position
# seen. (Where two experts score almost alike, rounding decides, and a position is up to 7e-2
# away; a state that is lost moves all of them by 1e-1 and more.)
HALF_ORDER = 1e-2

RuntimeOf = Callable[..., Runtime]


def assert_close(actual: FloatArray, expected: FloatArray, precision: str) -> None:
    if precision == "fp32":
        assert relative_error(actual, expected) < FLOAT_ORDER
    else:
        errors = np.abs(actual - expected).max(-1) / np.abs(expected).max()
        assert np.median(errors) < HALF_ORDER


@pytest.fixture(scope="session")
def runtime_of(bundle_of: Callable[..., Bundle]) -> RuntimeOf:
    """A bundle for a GPU, on the CPU provider."""

    @functools.cache
    def load(kind: str, target: str, precision: str = "fp32") -> Runtime:
        loaded: Runtime = find_runtime(target)(
            bundle_of(kind, precision, target), threads=1, device="cpu"
        )
        return loaded

    return load


@pytest.fixture(scope="session")
def true_logits(transformers_models: Mapping[str, Any]) -> Callable[..., FloatArray]:
    return lambda kind, row: run_transformers(transformers_models[kind], row)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle whose context is 24 tokens."""
    root = tmp_path_factory.mktemp("short")

    @functools.cache
    def make(target: str) -> Bundle:
        place = root / target
        model = "synthetic:tiny-moe"
        return export(model, place, target=target, precision="fp32", context_length=24)

    return make


def go_on(session: Any, runtime: Runtime) -> FloatArray:
    """A few tokens one by one, and several at once where that is possible."""
    steps = [decode_row(session, [9, 10, 11])]
    if runtime.info.capabilities.appends_many:
        steps.append(session.prefill([[12, 13, 14]]))
    return np.concatenate(steps)


# Against transformers


@each_case
def test_logits_equal_those_of_transformers(
    kind: str, target: str, runtime_of: RuntimeOf, true_logits: Callable[..., FloatArray]
) -> None:
    (row,) = make_rows(48)
    scored = runtime_of(kind, target).open(1, CAPACITY).score([row])[0]
    assert relative_error(scored, true_logits(kind, row)) < AGAINST_TRANSFORMERS


@each_case
def test_greedy_tokens_equal_those_of_transformers(
    kind: str, target: str, runtime_of: RuntimeOf, true_logits: Callable[..., FloatArray]
) -> None:
    (prompt,) = make_rows(20)
    tokens = generate(runtime_of(kind, target), prompt, 64)
    logits = true_logits(kind, prompt + tokens)[len(prompt) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    # A model that repeats itself would make this an easy test.
    assert len(set(tokens)) > 32


# Prompts of any length, in any pieces


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("kind", KINDS)
def test_padded_prompt_of_any_length_equals_transformers(
    kind: str,
    length: int,
    bundle_of: Callable[..., Bundle],
    true_logits: Callable[..., FloatArray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Lengths 4, 8 and 16: prompts of 1 to 2 x 4 + 1.
    monkeypatch.setattr(gpu_shapes, "_FIRST_LENGTH", 4)
    runtime = find_runtime("directml")(bundle_of(kind, "fp32", "directml"), device="cpu")
    (row,) = make_rows(14)
    expected = true_logits(kind, row)
    prefilled, scored = runtime.open(1, CAPACITY), runtime.open(1, CAPACITY)
    last, every = prefilled.prefill([row[:length]]), scored.score([row[:length]])[0]
    assert relative_error(last, expected[length - 1 : length]) < AGAINST_TRANSFORMERS
    assert relative_error(every, expected[:length]) < AGAINST_TRANSFORMERS
    for session in (prefilled, scored):
        stepped = decode_row(session, row[length:])
        assert relative_error(stepped, expected[length:]) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_in_chunks_equals_transformers(
    kind: str,
    chunk: int,
    runtime_of: RuntimeOf,
    true_logits: Callable[..., FloatArray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_session, "PREFILL_CHUNK", chunk)
    (row,) = make_rows(24)
    expected = true_logits(kind, row)
    prefilled, scored = (runtime_of(kind, "webgpu").open(1, CAPACITY) for _ in range(2))
    last = np.stack([prefilled.prefill([row[:20]])[0], *decode_row(prefilled, row[20:])])
    assert relative_error(last, expected[19:]) < AGAINST_TRANSFORMERS
    assert relative_error(scored.score([row])[0], expected) < AGAINST_TRANSFORMERS


@pytest.mark.parametrize("precision", PRECISIONS)
@each_case
def test_score_equals_prefill_and_decode(
    kind: str, target: str, precision: str, runtime_of: RuntimeOf
) -> None:
    runtime, (row,) = runtime_of(kind, target, precision), make_rows(24)
    stepped, scored, prefilled = (runtime.open(1, CAPACITY) for _ in range(3))
    one_by_one = np.concatenate([stepped.prefill([row[:1]]), decode_row(stepped, row[1:])])
    every, last = scored.score([row])[0], prefilled.prefill([row])[0]
    assert_close(every, one_by_one, precision)
    assert scored.lengths == prefilled.lengths == stepped.lengths == (24,)
    after = [last, scored.decode([9])[0]], [every[-1], stepped.decode([9])[0]]
    assert_close(np.stack(after[0]), np.stack(after[1]), precision)


# States that are emptied, put back and taken elsewhere


@pytest.mark.parametrize("calls", [1, 2], ids=["odd", "even"])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
@each_case
def test_reset_session_equals_a_fresh_one(
    kind: str, target: str, precision: str, calls: int, runtime_of: RuntimeOf
) -> None:
    runtime, (first, prompt) = runtime_of(kind, target, precision), make_rows(9, 12)
    used, fresh = runtime.open(1, CAPACITY), runtime.open(1, CAPACITY)
    used.prefill([first])
    for _ in range(calls - 1):
        used.decode([8])
    used.reset()
    assert used.lengths == (0,)
    np.testing.assert_array_equal(used.prefill([prompt]), fresh.prefill([prompt]))
    np.testing.assert_array_equal(go_on(used, runtime), go_on(fresh, runtime))


@pytest.mark.parametrize("calls", [1, 2], ids=["odd", "even"])
@each_case
def test_marked_place_is_gone_back_to_exactly_and_again(
    kind: str, target: str, calls: int, runtime_of: RuntimeOf
) -> None:
    runtime, (prompt,) = runtime_of(kind, target), make_rows(12)
    session = runtime.open(1, CAPACITY)
    session.prefill([prompt])
    mark = session.mark()
    expected = go_on(session, runtime)
    for _ in range(2):
        decode_row(session, [20] * calls)
        session.rewind(mark)
        assert session.lengths == (12,)
        np.testing.assert_array_equal(go_on(session, runtime), expected)
    session.reset()
    with pytest.raises(GenerationError, match="no longer there"):
        session.rewind(mark)


@each_case
def test_snapshot_goes_on_in_another_session_of_another_capacity(
    kind: str, target: str, runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_shapes, "_FIRST_ROOM", 16)
    runtime, (prompt, other) = runtime_of(kind, target), make_rows(12, 9)
    session = runtime.open(1, CAPACITY)
    session.prefill([prompt])
    mark, snapshot = session.mark(), session.snapshot()
    assert isinstance(snapshot, NamedStates)
    assert {a.shape[2] for n, a in snapshot.arrays.items() if "key" in n} == {12}
    expected = go_on(session, runtime)
    for taken in (snapshot, session.snapshot(mark)):
        branch = runtime.open(1, 20)
        branch.prefill([other])
        branch.restore(taken)
        assert branch.lengths == (12,)
        np.testing.assert_array_equal(go_on(branch, runtime), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_snapshot_of_another_model_or_too_long_is_refused(
    target: str, runtime_of: RuntimeOf, short: Callable[[str], Bundle]
) -> None:
    runtime, (prompt,) = runtime_of("dense", target), make_rows(12)
    session = runtime.open(1, CAPACITY)
    session.prefill([prompt])
    with pytest.raises(ContextOverflowError, match=r"holds 12 tokens.*capacity is 8"):
        runtime.open(1, 8).restore(session.snapshot())
    foreign = find_runtime(target)(short(target), device="cpu").open(1, 20)
    with pytest.raises(GenerationError, match="another session"):
        foreign.restore(session.snapshot())
    with pytest.raises(GenerationError, match="another session"):
        runtime_of("dense", target, "fp16").open(1, CAPACITY).restore(session.snapshot())


# Batches


@each_case
def test_rows_of_a_batch_are_bit_for_bit_what_they_are_alone(
    kind: str, target: str, runtime_of: RuntimeOf
) -> None:
    runtime, rows = runtime_of(kind, target, "int4"), make_rows(7, 1, 12)
    batch = runtime.open(3, CAPACITY)
    assert isinstance(batch, SeparateRows)
    alone = [runtime.open(1, CAPACITY) for _ in rows]
    expected = [session.prefill([row])[0] for session, row in zip(alone, rows, strict=True)]
    np.testing.assert_array_equal(batch.prefill(rows), np.stack(expected))
    together = batch.decode([9, None, 10])
    for row, token in ((0, 9), (2, 10)):
        np.testing.assert_array_equal(together[row], alone[row].decode([token])[0])
    assert batch.lengths == (8, 1, 13)


# Room


@pytest.mark.parametrize("target", TARGETS)
def test_context_is_filled_to_its_end_and_no_further(
    target: str, short: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prompts are padded to 16, and then to 24 instead of 32.
    monkeypatch.setattr(gpu_shapes, "_FIRST_LENGTH", 16)
    runtime = find_runtime(target)(short(target), device="cpu")
    (row,) = make_rows(24)
    whole, stepped = runtime.open(), runtime.open()
    assert whole.capacity == runtime.context_length == 24
    every = whole.score([row])[0]
    last = np.concatenate([stepped.prefill([row[:17]]), decode_row(stepped, row[17:])])
    assert relative_error(last, every[16:]) < FLOAT_ORDER
    for session in (whole, stepped):
        with pytest.raises(ContextOverflowError, match="24 tokens and 1 more do not fit"):
            session.decode([1])
        assert session.lengths == (24,)
    with pytest.raises(ContextOverflowError, match="capacity of 25"):
        runtime.open(1, 25)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_grow_with_the_row_and_keep_what_they_hold(
    kind: str, runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, (row,) = runtime_of(kind, "webgpu"), make_rows(20)
    steady = runtime.open(1, CAPACITY)
    expected = np.concatenate([steady.prefill([row[:3]]), decode_row(steady, row[3:])])
    monkeypatch.setattr(gpu_shapes, "_FIRST_ROOM", 4)
    growing = runtime.open(1, 18)
    assert isinstance(growing, GpuSession)
    rooms, logits = [growing._room], [growing.prefill([row[:3]])]
    for token in row[3:18]:
        logits.append(growing.decode([token]))
        rooms.append(growing._room)
    # Doubled, and at last the capacity; no step before it is needed.
    assert rooms == [4, 4, *[8] * 4, *[16] * 8, 18, 18]
    # Buffers of another length are summed in another order, if at all.
    assert relative_error(np.concatenate(logits), expected[:16]) < FLOAT_ORDER


def test_directml_s_shapes_are_fixed_and_few(
    bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_shapes, "_FIRST_LENGTH", 4)
    runtime = find_runtime("directml")(bundle_of("dense", "fp32", "directml"), device="cpu")
    assert isinstance(runtime, GpuRuntime)
    graphs = runtime.graphs
    assert isinstance(graphs, gpu_shapes.FixedLengths)
    for count, logits, key in ((2, 1, 4), (4, 1, 4), (5, 1, 8), (9, 1, 16), (3, 3, 4)):
        graph = graphs.find(count, logits)
        assert (graph.steps, graph.logit_count) == (key, key if logits > 1 else 1)
        shapes = {i.name: i.shape for i in graph.session.get_inputs()}
        assert all(isinstance(size, int) for shape in shapes.values() for size in shape)
    assert len(graphs._prompts) == gpu_shapes._MOST_KEPT
    assert graphs.find(3, 1).steps == 4  # given up, and loaded again
    assert graphs.find(1, 1).steps == 1
    # All sessions read the same weights.
    one, several = graphs.find(1, 1).bound, graphs.find(5, 1).bound
    assert one
    assert one.keys() == several.keys()
    assert all(one[name] is several[name] for name in one)


# Refusals


def test_several_tokens_are_not_appended_where_the_past_would_be_lost(
    runtime_of: RuntimeOf,
) -> None:
    runtime, (row,) = runtime_of("dense", "directml"), make_rows(12)
    assert not runtime.info.capabilities.appends_many
    session, alone = runtime.open(1, CAPACITY), runtime.open(1, CAPACITY)
    session.prefill([row[:5]])
    for append in (session.prefill, session.score):
        with pytest.raises(GenerationError) as caught:
            append([[1, 2]])
        assert str(caught.value) == (
            "runtime directml cannot append several tokens to 5 that are there: decode them one "
            "by one, or reset and prefill all"
        )
    # Nothing was appended, and single tokens are taken whatever they are given to.
    alone.prefill([row[:5]])
    np.testing.assert_array_equal(session.prefill([[9]]), alone.decode([9]))


@pytest.mark.parametrize("target", TARGETS)
def test_bundle_of_another_runtime_is_refused_with_the_target(
    target: str, bundle_of: Callable[..., Bundle]
) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        find_runtime(target)(bundle_of("dense", "fp32"), device="cpu")
    assert f"made for runtime 'ort', this is '{target}'" in str(caught.value)
    assert f"--target {target}" in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_closed_runtime_says_so(target: str, bundle_of: Callable[..., Bundle]) -> None:
    runtime = find_runtime(target)(bundle_of("dense", "fp32", target), device="cpu")
    session = runtime.open(1, CAPACITY)
    session.prefill([[9, 10]])
    runtime.close()
    for use in (lambda: runtime.open(1, 8), lambda: session.decode([9])):
        with pytest.raises(GenerationError, match="closed; load the bundle again"):
            use()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1], [2]], "2 rows were given, expected 1"),
        ([[]], "no token to append"),
        ([[512]], "512 is not in 0 to 511"),
        ([[1] * 65], "65 more do not fit"),
    ],
)
def test_impossible_rows_are_refused_and_append_nothing(
    target: str, rows: Sequence[Sequence[int]], words: str, runtime_of: RuntimeOf
) -> None:
    session = runtime_of("dense", target).open(1, CAPACITY)
    for append in (session.prefill, session.score):
        with pytest.raises((GenerationError, ContextOverflowError), match=words):
            append(rows)
    assert session.lengths == (0,)


@pytest.mark.parametrize("target", TARGETS)
def test_there_is_nothing_to_propose(target: str, runtime_of: RuntimeOf) -> None:
    runtime = runtime_of("dense", target)
    assert runtime.info.capabilities.max_proposal == 0
    session = runtime.open(1, CAPACITY)
    with pytest.raises(GenerationError, match=f"{target} cannot take tokens back"):
        session.propose([[1]])
    with pytest.raises(GenerationError, match="no proposal"):
        session.accept([0])


@pytest.mark.parametrize("target", TARGETS)
def test_graph_that_onnxruntime_refuses_is_one_line(
    target: str, bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = bundle_of("dense", "fp32", target)
    for record in bundle.manifest.graphs:
        (tmp_path / record.file).write_bytes(b"not a graph")
    broken = Bundle(tmp_path, bundle.manifest, bundle.config)
    with pytest.raises(Exception, match=r"cannot load .*on the CPU.*export the model again") as e:
        find_runtime(target)(broken, device="cpu")
    assert "\n" not in str(e.value)


def test_session_goes_on_after_the_device_had_no_room(
    bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The size was noted before the buffers were there, and every later call failed.
    monkeypatch.setattr("runtimes.gpu_shapes._FIRST_ROOM", 8)
    runtime = find_runtime("webgpu")(bundle_of("dense", "fp32", "webgpu"), device="cpu")
    session, other = runtime.open(1, 64), runtime.open(1, 64)
    for each in (session, other):
        each.prefill([[1, 2, 3, 4, 5, 6]])
    upload = runtime.memory.upload

    def refuse(array: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runtime.memory, "upload", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.prefill([[7, 8, 9, 10]])
    monkeypatch.setattr(runtime.memory, "upload", upload)
    assert session.lengths == (6,)
    assert np.array_equal(session.prefill([[7, 8, 9, 10]]), other.prefill([[7, 8, 9, 10]]))
