"""Layers rounded one after another: what is on the disk, what is measured, who is rare."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.quantize import experts as experts_module
from exporters.quantize.experts import Routing
from exporters.quantize.layerwise import Job, read_records, round_layers
from exporters.quantize.methods import METHODS
from exporters.quantize.pack import recover
from exporters.quantize.plan import TensorPlan, plan_tensors
from exporters.quantize.rounded import RoundedCheckpoint, round_checkpoint
from exporters.quantize.store import Store
from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy.calibration_text import CalibrationText, choose_text
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint, ignore_progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import DiskFullError, ResumeError
from lfm2_deploy.model.streaming import StreamedDecoder, stream_hidden
from lfm2_deploy.weights import EMBEDDING, list_weights

MODEL = open_checkpoint("synthetic:tiny-moe")
ROWS = [[1, *np.random.default_rng(row).integers(8, 500, 63).tolist()] for row in range(6)]
TEXT = CalibrationText("made up", "00", ROWS)


def plan_for(checkpoint: Checkpoint, precision: str = "int4") -> dict[str, TensorPlan]:
    weights = list_weights(checkpoint.config)
    plan = plan_tensors(weights, precision)  # type: ignore[arg-type]
    rounded = {w.name for w in weights if w.role in ("projection", "expert")}
    return {
        name: replace(entry, rounding="recover") if name in rounded else entry
        for name, entry in plan.items()
    }


def make_job(method: str = "gptq", precision: str = "int4", **changes: object) -> Job:
    job = Job(MODEL, plan_for(MODEL, precision), METHODS[method], ROWS, ignore_progress)
    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"), "a")
    round_layers(make_job(), store)
    return store


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_every_planned_matrix_lies_on_its_grid(tmp_path: Path, method: str, precision: str) -> None:
    job, kept = make_job(method, precision), Store(tmp_path / "store", "a")
    round_layers(job, kept)
    for name, entry in job.plan.items():
        if entry.rounding == "recover":
            recover(kept.read(name), entry.bits, entry.group)  # raises where it does not


def hidden_error(checkpoint: Checkpoint) -> float:
    """How far the last hidden state is from the exact model's, relative, on other tokens."""
    rows = [[1, *np.random.default_rng(9).integers(8, 500, 63).tolist()]]
    return measure_error(checkpoint, MODEL, rows)


def measure_error(checkpoint: Checkpoint, exact: Checkpoint, rows: list[list[int]]) -> float:
    ends = []
    for model in (exact, checkpoint):
        for _, x, _ in stream_hidden(StreamedDecoder(model), rows):
            last = x
        ends.append(last)
    return float((ends[0] - ends[1]).norm() / ends[0].norm())


def test_gptq_leaves_less_error_than_search_on_other_tokens(store: Store, tmp_path: Path) -> None:
    rounded = RoundedCheckpoint(MODEL, store, "a")
    awq = Store(tmp_path / "store", "a")
    round_layers(make_job("awq"), awq)
    assert hidden_error(rounded) < hidden_error(RoundedCheckpoint(MODEL, awq, "a"))


@pytest.mark.parametrize("text", ["hi", "The quick brown fox jumps over the lazy dog. " * 40])
def test_text_that_tells_nothing_costs_nothing(text: str, tmp_path: Path) -> None:
    demo, file = open_checkpoint(str(DEMO_MODEL)), tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    plan, kept = plan_for(demo), Store(tmp_path / "store", "a")
    rows = choose_text(demo, file).rows
    round_layers(Job(demo, plan, METHODS["gptq"], rows, ignore_progress), kept)
    nearest = {name: replace(entry, rounding="search") for name, entry in plan.items()}
    tables = {name: entry for name, entry in nearest.items() if name == EMBEDDING}
    others = choose_text(demo, None).rows[::32]
    plain = measure_error(StoredCheckpoint(demo, nearest), demo, others)
    blind = StoredCheckpoint(RoundedCheckpoint(demo, kept, "a"), {**plan, **tables})
    # As exact as without a text; before tokens were trusted by what they tell, 1.2 times that.
    assert measure_error(blind, demo, others) < 1.02 * plain


def test_record_has_a_line_a_layer_and_a_line_for_all_its_experts(store: Store) -> None:
    found = read_records(store)
    tensors, layers, config = found.tensors, found.layers, MODEL.config
    assert [line.name for line in found.weights] == [line.name for line in tensors]
    assert all(0 < line.error < 0.5 for line in found.weights)
    assert [line.layer for line in layers] == list(range(config.num_hidden_layers))
    assert all(0 < line.error < 0.5 for line in layers)
    assert all(0 < line.error <= line.largest < 0.5 for line in tensors)
    names = [line.name for line in tensors]
    assert len(names) == len(set(names))
    for layer in config.moe_layers:
        assert names.count(f"model.layers.{layer}.feed_forward.experts.*.w2.weight") == 1


def test_experts_tokens_are_counted_as_the_router_gives_them(store: Store) -> None:
    layers = read_records(store).layers
    tokens, moe = 6 * 64, MODEL.config.moe
    assert moe is not None
    for line in layers:
        if line.layer in MODEL.config.moe_layers:
            assert 0 <= line.fewest_tokens <= line.median_tokens <= tokens
            assert line.rare_experts <= moe.num_experts
            # All of them are: there are fewer tokens than the rule asks for on average.
            assert line.rare_experts > 0


def test_rare_expert_takes_the_tokens_that_came_closest() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.7, 0.6], [0.2, 0.4]])
    chosen = scores.argmax(1, keepdim=True)
    shares = scores / scores.gather(1, chosen)
    routing = Routing(chosen, torch.ones(4, 1), scores, shares)
    assert routing.find(1)[0].tolist() == [3]
    tokens, weights = routing.find_more(1, 3)
    assert tokens.tolist() == [3, 2, 1]
    torch.testing.assert_close(weights, torch.tensor([1, 0.6 / 0.7, 0.3 / 0.8]))
    assert routing.find_more(1, 100)[0].tolist() == [3, 2, 1, 0]
    assert routing.find_more(0, 2)[0].tolist() == [0, 1, 2]


def test_expert_that_no_token_chose_is_rounded_all_the_same(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    base = make_checkpoint()

    class Unchosen:
        """Expert 0 is never chosen."""

        def __getattr__(self, name: str) -> object:
            return getattr(base, name)

        def read(self, name: str) -> np.ndarray:
            array = base.read(name)
            if name.endswith("expert_bias"):
                array[0] = -10
            return array

    checkpoint = Unchosen()
    rows = [[1, *range(10, 40)]] * 2
    plan = plan_for(base)
    job = Job(checkpoint, plan, METHODS["gptq"], rows, ignore_progress)  # type: ignore[arg-type]
    kept = Store(tmp_path / "store", "a")
    round_layers(job, kept)
    layers = read_records(kept).layers
    assert [line.fewest_tokens for line in layers if line.rare_experts] == [0, 0]
    name = f"model.layers.{base.config.moe_layers[0]}.feed_forward.experts.0.w1.weight"
    exact, found = base.read(name), kept.read(name)
    assert np.abs(found - exact).mean() < 0.2 * np.abs(exact).mean()


def test_interrupted_rounding_goes_on_to_the_same_bytes(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        round_layers(make_job(progress=interrupt), Store(folder, "a"))
    resumed = Store(folder, "a")
    assert resumed.layers == 2
    (folder / "layer.2.bin").write_bytes(b"cut short")  # begun, and not whole
    round_layers(make_job(), resumed)
    for layer in range(store.layers):
        assert (folder / f"layer.{layer}.bin").read_bytes() == store.data(layer).read_bytes()
    assert resumed.records == store.records
    assert not list(folder.glob("hidden.*"))


def test_store_of_another_export_is_refused(tmp_path: Path) -> None:
    round_checkpoint(make_job(), TEXT, tmp_path / "store")
    with pytest.raises(ResumeError, match="rounded otherwise"):
        round_checkpoint(make_job("awq"), TEXT,
                         tmp_path / "store")  # fmt: skip
    with pytest.raises(ResumeError, match="with --overwrite instead of --resume"):
        round_checkpoint(make_job(), replace(TEXT, sha256="01"), tmp_path / "store")


def test_identity_tells_how_it_was_rounded(tmp_path: Path) -> None:
    first, record = round_checkpoint(make_job(), TEXT, tmp_path / "first")
    second, _ = round_checkpoint(make_job("awq"), TEXT, tmp_path / "second")
    assert len({MODEL.identity, first.identity, second.identity}) == 3
    assert (record.method, record.text, record.tokens) == ("gptq", "made up", 6 * 64)
    assert record.rare_below == experts_module.RARE_BELOW


def test_full_disk_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "save_hidden", fail)
    with pytest.raises(DiskFullError, match="go on with --resume"):
        round_checkpoint(make_job(), TEXT, tmp_path / "store")
