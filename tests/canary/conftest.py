"""A canary of the fake runtime, which needs no model, and a cache folder of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy.bundle import CANARY, Bundle, FileRecord
from lfm2_deploy.canary.record import (
    Call,
    Canary,
    Coverage,
    Row,
    Signature,
    choose_sampled_ids,
    digest_logits,
    write_canary,
)
from lfm2_deploy.canary.script import write_script
from lfm2_deploy.contracts import FloatArray
from runtimes.fake import FakeRuntime, NextLogits, hash_logits

VOCABULARY, NOISE, UNIT = 200, 0.01, 0.001
CONTEXT = 64


def record_fake(next_logits: NextLogits, context: int = CONTEXT) -> Canary:
    """The canary of a fake model."""
    sampled = choose_sampled_ids(VOCABULARY)
    rows = []
    for row in write_script(list(range(1, 190)), 0, context):
        seen: list[int] = []
        calls = []
        for tokens in row.calls:
            seen += tokens
            digest = digest_logits(next_logits(tuple(seen)), sampled)
            # As the largest of several runs is to their median.
            calls.append(Call(tokens, digest, 1.25 * NOISE))
        rows.append(Row(row.name, tuple(calls)))
    change = [round(float(x), 3) for x in np.random.default_rng(7).normal(0, 0.03, 16 + 48)]
    numbers = tuple(range(len(rows[0].calls)))
    counts = tuple(tuple(round(x / UNIT) for x in change) for _ in numbers)
    signatures = (Signature("the planet were flat", rows[0].name, numbers, UNIT, counts),)
    return Canary(sampled, NOISE, tuple(rows), signatures, Coverage(48, 47, 40))


@pytest.fixture
def next_logits() -> NextLogits:
    """The fake model."""
    return hash_logits(VOCABULARY)


@pytest.fixture
def canary(next_logits: NextLogits) -> Canary:
    """Its canary."""
    return record_fake(next_logits)


@pytest.fixture
def make_runtime(next_logits: NextLogits) -> Callable[..., FakeRuntime]:
    """A fake runtime, whose logits may be changed on the way out."""

    def make(
        change: Callable[[tuple[int, ...], FloatArray], FloatArray] | None = None, **options: object
    ) -> FakeRuntime:
        def changed(history: tuple[int, ...]) -> FloatArray:
            logits = next_logits(history)
            return logits if change is None else change(history, logits)

        return FakeRuntime(
            changed,
            vocab_size=VOCABULARY,
            context_length=CONTEXT,
            **options,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache in which things are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    monkeypatch.delenv("LFM2_DEPLOY_CANARY")
    return tmp_path / "cache"


@pytest.fixture
def bundle(canary: Canary, tmp_path: Path, random_bundle: Bundle) -> Bundle:
    """A bundle with the fake model's canary; its graph is another's."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_canary(canary, folder)
    files: Mapping[str, FileRecord] = {**random_bundle.manifest.files, CANARY: FileRecord(0, "")}
    manifest = replace(random_bundle.manifest, files=files, context_length=CONTEXT)
    config = replace(random_bundle.config, vocab_size=VOCABULARY)
    return replace(random_bundle, path=folder, manifest=manifest, config=config)


@pytest.fixture(scope="session")
def random_bundle(bundle_of: Callable[..., Bundle]) -> Bundle:
    """A dense random model in fp32."""
    return bundle_of("dense", "fp32")
