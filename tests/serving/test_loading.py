"""A model is loaded, unloaded and loaded again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import (
    ClosedError,
    GenerationError,
    StoreError,
)
from lfm2_deploy.serving.engine import Engine, EngineLimits, LoadProgress
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits

from .asking import PROMPT, ask_together, wait_until
from .conftest import VOCAB, build_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "demo"
    return lfm2_deploy.export(str(DEMO_MODEL), out, precision="int4").path


def test_loading_tells_its_stages_in_order(bundle: Path) -> None:
    told: list[LoadProgress] = []
    with Engine.load(bundle, canary="always", progress=told.append) as engine:
        assert engine.state.loaded
    stages = list(dict.fromkeys(one.stage for one in told))
    assert stages == ["hashing", "loading", "checking", "ready"]


def test_idle_engine_unloads_and_loads_again_for_the_next_request(bundle: Path) -> None:
    limits = EngineLimits(idle_seconds=0.05)
    with Engine.load(bundle, limits=limits) as engine:
        first = engine.generate("It was", max_new_tokens=5, temperature=0.0)
        wait_until(lambda: not engine.state.loaded)
        again = asyncio.run(engine.agenerate("It was", max_new_tokens=5, temperature=0.0))
        assert again.token_ids == first.token_ids
        assert engine.state.completion_tokens == 10


def test_engine_of_a_loaded_model_cannot_promise_to_load_it_again(tokenizer: Tokenizer) -> None:
    model = build_model(tokenizer, hash_logits(VOCAB))
    with pytest.raises(GenerationError, match=r"Engine\.load"):
        Engine(model, EngineLimits(idle_seconds=1.0))


def test_threads_that_ask_at_once_get_their_own_answers(bundle: Path) -> None:
    prompts = [f"Chapter {i}. It was" for i in range(12)]
    options = {"max_new_tokens": 12, "temperature": 0.0}
    with Engine.load(bundle, limits=EngineLimits(exact_rows=True)) as engine:
        expected = [engine.generate(prompt, **options).token_ids for prompt in prompts]
        found: dict[str, tuple[int, ...]] = {}

        def ask(prompt: str) -> None:
            found[prompt] = engine.generate(prompt, **options).token_ids

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[prompt] for prompt in prompts] == expected


@pytest.mark.parametrize("limits", [EngineLimits(), EngineLimits(idle_seconds=0.05)])
def test_model_of_the_store_can_be_removed_once_it_is_unloaded(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: EngineLimits
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    store = lfm2_deploy.ModelStore()
    name = store.pull(str(bundle)).name
    engine = Engine.load(name, limits=limits)
    ask_together(engine, [PROMPT, [1, 5]], max_new_tokens=4)
    if limits.idle_seconds is None:
        with pytest.raises(StoreError, match="is loaded"):
            store.remove(name)
        engine.close()
    wait_until(lambda: not engine.state.loaded)
    wait_until(lambda: not store.get(name).in_use)
    store.remove(name)
    assert store.list() == ()
    engine.close()


def test_engine_loads_again_after_a_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(bundle) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "_admit", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.generate("It was", max_new_tokens=2)
            wait_until(lambda: not engine.state.loaded)
        assert "division by zero" in engine.state.failure
        assert len(engine.generate("It was", max_new_tokens=2).token_ids) == 2
        assert engine.state.failure == ""


def test_engine_that_was_drained_while_unloaded_takes_nothing_more(bundle: Path) -> None:
    with Engine.load(bundle, limits=EngineLimits(idle_seconds=0.05)) as engine:
        wait_until(lambda: not engine.state.loaded)
        assert engine.drain() is True
        with pytest.raises(ClosedError, match="shutting down"):
            engine.generate("It was")


def test_engine_can_be_closed_while_it_loads_again(bundle: Path) -> None:
    engines: list[Engine] = []

    def close_at_reload(at: LoadProgress) -> None:
        if engines and at.stage == "loading":
            engines[0].close()

    engines.append(
        Engine.load(bundle, limits=EngineLimits(idle_seconds=0.05), progress=close_at_reload)
    )
    wait_until(lambda: not engines[0].state.loaded)
    with pytest.raises(ClosedError, match="while it was loading"):
        engines[0].generate("It was")
