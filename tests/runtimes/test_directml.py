"""What DirectML's adapter must do about DirectML: seen with sessions that behave alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.errors import GenerationError, RuntimeUnavailableError
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.tokens import generate_tokens
from runtimes.directml import find_adapter, load, make_runtime
from runtimes.gpu_memory import DeviceMemory
from runtimes.gpu_model import GpuRuntime
from runtimes.ort_plugins import ProviderDevice

from .fake_directml import FakeDirectML

BundleOf = Callable[..., Bundle]
NEVER, ALWAYS = 1 << 30, 1
PROMPT = [(7 * n) % 500 for n in range(1, 90)]


@pytest.fixture(
    params=[("dense", NEVER), ("moe", NEVER), ("moe", ALWAYS)], ids=["dense", "moe", "routed"]
)
def kind(request: pytest.FixtureRequest) -> tuple[str, int]:
    """A model, and the padded length from which its prompts are routed."""
    found: tuple[str, int] = request.param
    return found


@pytest.fixture
def bundle(kind: tuple[str, int], bundle_of: BundleOf) -> Bundle:
    return bundle_of(kind[0], "fp32", "directml")


@pytest.fixture
def fake() -> FakeDirectML:
    return FakeDirectML()


@pytest.fixture
def runtime(kind: tuple[str, int], bundle: Bundle, fake: FakeDirectML) -> GpuRuntime:
    return make_runtime(bundle, fake.load, DeviceMemory("cpu"), "a fake", routed_from=kind[1])


@pytest.fixture
def truth(bundle: Bundle, bundle_of: BundleOf, open_ort: Callable[[Bundle], Runtime]) -> Runtime:
    """The CPU runtime, on the same model."""
    kind = "moe" if bundle.config.moe else "dense"
    return open_ort(bundle_of(kind, "fp32", "cpu"))


def continue_prompt(runtime: Runtime, cache: PromptCache, ids: Sequence[int]) -> list[int]:
    """Eight greedy tokens, as `LanguageModel` asks for them."""
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    able = runtime.info.capabilities
    with cache.reuse(ids) as (session, start):
        events = generate_tokens(
            session, [ids], options, start=start, appends_many=able.appends_many
        )
        return [event.token_id for event in events if event.token_id is not None]


def chat(runtime: Runtime, *turns: Sequence[int]) -> list[list[int]]:
    """Answers to turns of one conversation, each appended to all before it."""
    cache, ids, answers = PromptCache(runtime), [], []  # type: ignore[var-annotated]
    for turn in turns:
        ids = [*ids, *turn]
        answers.append(continue_prompt(runtime, cache, ids))
        ids = [*ids, *answers[-1]]
    return answers


def test_conversation_gives_the_cpu_runtimes_tokens(
    runtime: GpuRuntime, truth: Runtime, fake: FakeDirectML
) -> None:
    turns = (PROMPT, [11, 12, 13], PROMPT[:40])
    assert chat(runtime, *turns) == chat(truth, *turns)
    # A short turn is appended token by token, a long one is read anew with all before it.
    brought = [(count, held) for count, held in fake.calls if count > 1]
    assert [held for _, held in brought] == [0, 0]
    assert brought[0][0] == len(PROMPT)
    assert brought[1][0] > len(PROMPT) + 40


def test_appending_several_would_give_wrong_tokens(
    runtime: GpuRuntime, truth: Runtime, fake: FakeDirectML
) -> None:
    # Were the capability to lie, the fake shows what DirectML would do: the test above can fail.
    able = replace(runtime.info.capabilities, appends_many=True)
    runtime.info = replace(runtime.info, capabilities=able)
    turns = (PROMPT, [11, 12, 13])
    assert chat(runtime, *turns)[1] != chat(truth, *turns)[1]
    assert any(count > 1 and held > 0 for count, held in fake.calls)


def test_long_prompt_is_read_in_one_call(runtime: GpuRuntime, fake: FakeDirectML) -> None:
    session = runtime.open(1)
    session.prefill([[5] * 1500])
    assert fake.calls == [(1500, 0)]


def test_appending_several_tokens_is_refused_in_one_line(runtime: GpuRuntime) -> None:
    session = runtime.open(1)
    session.prefill([[1, 2, 3]])
    with pytest.raises(GenerationError, match="cannot append several tokens to 3") as caught:
        session.prefill([[4, 5]])
    assert "\n" not in str(caught.value)
    assert session.lengths == (3,)


def test_going_back_to_a_mark_and_appending_singly_gives_the_same_logits(
    runtime: GpuRuntime,
) -> None:
    session = runtime.open(1)
    session.prefill([PROMPT])
    mark = session.mark()
    first = session.decode([3])
    session.decode([4])
    session.rewind(mark)
    assert np.array_equal(session.decode([3]), first)


def test_missing_provider_is_one_line_that_says_what_to_do(bundle: Bundle) -> None:
    remedy = "onnxruntime-windowsml" if sys.platform == "win32" else "--device cpu"
    with pytest.raises(RuntimeUnavailableError, match=remedy) as caught:
        load(bundle)
    assert "\n" not in str(caught.value)


def test_adapters_number_is_the_one_that_windows_tells() -> None:
    class Hardware:
        metadata = {"DxgiAdapterNumber": "2"}  # noqa: RUF012

    class Handle:
        device = Hardware()

    device = ProviderDevice("DmlExecutionProvider", 0, "gpu", "", 0, 0, "", False, Handle())
    assert find_adapter(device) == 2
    assert find_adapter(device.without_handle()) == 0
