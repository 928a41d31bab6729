"""onnxruntime-genai behind our sessions: the same logits, wherever a prompt is cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes.genai
from lfm2_deploy import load
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.errors import (
    BundleError,
    ContextOverflowError,
    GenerationError,
    RuntimeUnavailableError,
)
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.registry import find_runtime
from runtimes import genai_device
from runtimes.genai_device import DEVICES, find_device

from ..logits import decode_row, generate, make_rows, relative_error, run_transformers  # noqa: TID252

BundleOf = Callable[..., Bundle]
RuntimeOf = Callable[[str, str], Runtime]
# As tests/test_exactness.py has them: float32 sums in another order, and activations rounded to
# 8 bits, of which one may move by a whole step.
FLOAT_ORDER, ROUNDED_ACTIVATIONS = 1e-4, 3e-2
CAPACITY = 64


@pytest.fixture(scope="module")
def runtime_of(bundle_of: BundleOf) -> RuntimeOf:
    """A tiny random model in onnxruntime-genai, loaded once."""

    @functools.cache
    def make(kind: str, precision: str) -> Runtime:
        runtime: Runtime = find_runtime("genai")(bundle_of(kind, precision), threads=1)
        return runtime

    return make


# Prompts in pieces


@pytest.mark.parametrize("first", range(1, 13))
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_tokens_appended_at_any_boundary_go_on_as_in_transformers(
    kind: str, first: int, runtime_of: RuntimeOf, transformers_models: Mapping[str, Any]
) -> None:
    (row,) = make_rows(16)
    session = runtime_of(kind, "fp32").open(1, CAPACITY)
    ends = [first, 13]  # of pieces; then token by token
    logits = [session.prefill([row[: ends[0]]]), session.prefill([row[ends[0] : ends[1]]])]
    found = np.concatenate([*logits, decode_row(session, row[13:])])
    expected = run_transformers(transformers_models[kind], row)[[first - 1, 12, 13, 14, 15]]
    assert relative_error(found, expected) < FLOAT_ORDER
    assert session.lengths == (16,)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_appended_pieces_equal_those_of_our_runtime(
    kind: str, precision: str, runtime_of: RuntimeOf, bundle_of: BundleOf, open_ort: Any
) -> None:
    (row,) = make_rows(24)
    logits = []
    for runtime in (runtime_of(kind, precision), open_ort(bundle_of(kind, precision))):
        session = runtime.open(1, CAPACITY)
        given = [session.prefill([row[start : start + 5]]) for start in range(0, 20, 5)]
        logits.append(np.concatenate([*given, decode_row(session, row[20:])]))
    limit = FLOAT_ORDER if precision == "fp16" else ROUNDED_ACTIVATIONS
    assert relative_error(logits[0], logits[1]) < limit


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_greedy_tokens_equal_those_of_our_runtime(
    kind: str, precision: str, runtime_of: RuntimeOf, bundle_of: BundleOf, open_ort: Any
) -> None:
    (prompt,) = make_rows(20)
    expected = generate(open_ort(bundle_of(kind, precision)), prompt, 40)
    assert generate(runtime_of(kind, precision), prompt, 40) == expected


def test_prompt_longer_than_a_piece_equals_a_short_one_many_times(
    runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = make_rows(20)
    whole = runtime_of("dense", "fp32").open(1, CAPACITY).prefill([row])
    monkeypatch.setattr("runtimes.genai_session.PREFILL_CHUNK", 7)
    pieces = runtime_of("dense", "fp32").open(1, CAPACITY).prefill([row])
    assert relative_error(pieces, whole) < FLOAT_ORDER


@pytest.mark.parametrize("most_shared", [0, 1 << 40])
def test_growing_and_shared_keys_give_the_same(
    most_shared: int, runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = make_rows(12)
    expected = runtime_of("moe", "fp32").open(1, CAPACITY).prefill([row])
    monkeypatch.setattr(runtimes.genai, "MOST_SHARED_BYTES", most_shared)
    session = runtime_of("moe", "fp32").open(1, CAPACITY)
    logits = session.prefill([row[:5]])
    for token in row[5:]:
        logits = session.decode([token])
    assert relative_error(logits, expected) < FLOAT_ORDER


# Rows and ends


def test_ragged_rows_equal_rows_alone(runtime_of: RuntimeOf) -> None:
    rows = make_rows(3, 11)
    runtime = runtime_of("moe", "int4")
    together = runtime.open(2, CAPACITY)
    logits = [together.prefill(rows), together.decode([9, None]), together.decode([None, 10])]
    for index, row in enumerate(rows):
        alone = runtime.open(1, CAPACITY)
        np.testing.assert_array_equal(logits[0][index], alone.prefill([row])[0])
        token = (9, 10)[index]
        np.testing.assert_array_equal(logits[1 + index][index], alone.decode([token])[0])
    assert together.lengths == (4, 12)


def test_reset_session_is_a_fresh_one(runtime_of: RuntimeOf) -> None:
    (row,) = make_rows(9)
    session = runtime_of("dense", "fp32").open(1, CAPACITY)
    first = session.prefill([row])
    session.decode([7])  # an end-of-turn token is one like others
    session.reset()
    assert session.lengths == (0,)
    np.testing.assert_array_equal(session.prefill([row]), first)


def test_row_is_filled_to_its_capacity_and_no_further(runtime_of: RuntimeOf) -> None:
    (row,) = make_rows(9)
    session = runtime_of("dense", "fp32").open(1, 9)
    session.prefill([row[:8]])
    session.decode([row[8]])
    with pytest.raises(ContextOverflowError, match="do not fit this session's 9"):
        session.decode([10])
    assert session.lengths == (9,)


def test_id_outside_the_vocabulary_is_refused_before_genai_sees_it(runtime_of: RuntimeOf) -> None:
    session = runtime_of("dense", "fp32").open(1, 9)
    with pytest.raises(GenerationError, match="token id 512 is not in 0 to 511"):
        session.prefill([[5, 512]])
    with pytest.raises(GenerationError, match="no token to append"):
        session.prefill([[]])
    assert session.lengths == (0,)


@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.mark(),
        lambda session: session.snapshot(),
        lambda session: session.rewind(None),
        lambda session: session.restore(None),
        lambda session: session.propose([[1]]),
    ],
)
def test_what_goes_back_is_refused_with_a_way_on(
    call: Callable[[Any], object], runtime_of: RuntimeOf
) -> None:
    runtime = runtime_of("dense", "fp32")
    assert not runtime.info.capabilities.rewinds
    with pytest.raises(GenerationError, match="reset the session and append the tokens again"):
        call(runtime.open(1, 9))


def test_failure_within_genai_is_one_line_and_leaves_the_session_unusable(
    runtime_of: RuntimeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = runtime_of("dense", "fp32").open(1, 9)
    session.prefill([[9]])

    class Broken:
        def append_tokens(self, tokens: object) -> None:
            raise RuntimeError("out of\nmemory")

    session._generator = Broken()
    with pytest.raises(GenerationError, match=r"after 1 tokens \(out of memory\)"):
        session.decode([9])
    with pytest.raises(GenerationError, match="reset this session"):
        session.decode([9])
    session.reset()
    session.prefill([[9]])


def test_closed_runtime_says_so(bundle_of: BundleOf) -> None:
    runtime = find_runtime("genai")(bundle_of("dense", "int4"))
    session = runtime.open(1, 9)
    runtime.close()
    for use in (lambda: runtime.open(1, 9), lambda: session.prefill([[9]])):
        with pytest.raises(GenerationError, match="this runtime is closed"):
            use()


# Devices


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "cpu"])
def test_device_that_is_not_here_is_refused_and_not_the_cpu(name: str, bundle_of: BundleOf) -> None:
    # A GPU's own wheel, or a provider with a device, may be here; then nothing is refused.
    with pytest.raises(RuntimeUnavailableError, match=name) as refusal:
        find_runtime("genai")(bundle_of("dense", "fp16"), device=name)
    assert "\n" not in str(refusal.value)


def test_nodes_left_to_the_cpu_are_told_of(bundle_of: BundleOf) -> None:
    reason = "This session contains graph nodes that are assigned to the default CPU EP, but "
    reason += "fallback to CPU EP has been explicitly disabled by the user."
    told = genai_device._explain(DEVICES["cuda"], reason)
    assert "would leave operators of this graph to the CPU" in told
    overlay = genai_device._make_overlay(DEVICES["cuda"], None)
    options = overlay["model"]["decoder"]["session_options"]
    assert options["session.disable_cpu_ep_fallback"] == "1"


def test_unknown_device_lists_the_choices() -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no device 'cudo'.*choose among cpu, cuda"):
        find_device("cudo")
    assert find_device("DML") is DEVICES["directml"]
    assert find_device(None) is DEVICES["cpu"]


def test_bundle_without_its_config_is_refused(bundle_of: BundleOf) -> None:
    bundle = bundle_of("dense", "fp32", "openvino-cpu")
    with pytest.raises(RuntimeUnavailableError, match=r"has no genai_config\.json.*--target cpu"):
        find_runtime("genai")(bundle)


def test_config_that_genai_refuses_is_one_line(bundle_of: BundleOf, tmp_path: Path) -> None:
    for file in bundle_of("dense", "fp32").path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "genai_config.json"
    config.write_text(config.read_text().replace('"lfm2"', '"lfm9"'))
    with pytest.raises(BundleError, match="Unsupported model_type") as refusal:
        genai_device.load_model(tmp_path, DEVICES["cpu"], None)
    assert "\n" not in str(refusal.value)


# Everything above sessions


@pytest.fixture(scope="module")
def models(demo_bundle: Bundle) -> Mapping[str, Any]:
    """The demo model by genai, canary and all, and by our own runtime."""
    genai = load(demo_bundle, device="genai", canary="always", threads=1)
    return {"genai": genai, "ort": load(demo_bundle, threads=1)}


def test_demo_model_passes_its_canary_and_names_its_runtime(models: Mapping[str, Any]) -> None:
    info = models["genai"].runtime.info
    assert (info.runtime, info.device, info.arithmetic) == ("genai", "cpu", "int8")
    assert "onnxruntime-genai 0.18" in info.driver
    assert not models["genai"].remarks


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "repetition_penalty": 1.0},
        {"temperature": 0.8, "top_k": 20, "min_p": 0.05, "seed": 3},
        {"temperature": 0.0, "stop": "United States"},
    ],
)
def test_our_sampler_and_stops_choose_as_on_our_runtime(
    options: Mapping[str, Any], models: Mapping[str, Any]
) -> None:
    prompt = "Once upon a time"
    answers = [
        models[name].generate(prompt, max_new_tokens=40, **options) for name in ("genai", "ort")
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].finish_reason == answers[1].finish_reason


def test_prompt_cache_reads_anew_what_it_cannot_go_back_to(models: Mapping[str, Any]) -> None:
    model, texts = models["genai"], []
    cache = PromptCache(model.runtime)
    wishes = {"max_new_tokens": 12, "temperature": 0.0}
    prompts = ["The report of the Secretary", "The report of the President", "The report"]
    for prompt in prompts:
        texts.append(model.generate(prompt, cache=cache, **wishes).text)
    assert texts == [model.generate(prompt, **wishes).text for prompt in prompts]
