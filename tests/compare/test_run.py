"""Whole comparisons of tiny models: faults, base files, devices, failures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lfm2_deploy import places
from lfm2_deploy.api import compare_models, export
from lfm2_deploy.compare import measure
from lfm2_deploy.compare.measure import Wish
from lfm2_deploy.compare.prepare import _is_other
from lfm2_deploy.compare.result_json import describe, read_report
from lfm2_deploy.compare.run import Settings
from lfm2_deploy.compare.scorer import Request, RuntimeScorer
from lfm2_deploy.compare.verdict import Limits
from lfm2_deploy.contracts import Capabilities, Origin, ignore_progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError, GenerationError, Lfm2DeployError, RequestError
from runtimes import ort
from runtimes.fake import FakeRuntime, hash_logits
from runtimes.streamed import StreamedScorer

from .whole import Checkpoints, cache, compare, settings, spoil

__all__ = ["cache"]  # a fixture
pytestmark = pytest.mark.usefixtures("cache")


def test_fault_is_measured_and_found(checkpoints: Checkpoints, tmp_path: Path) -> None:
    faulty = spoil(checkpoints["dense"], tmp_path / "faulty", "layers.3.conv.in_proj.weight")
    good = f"torch:{checkpoints['dense']}"
    report = compare(f"torch:{faulty}", reference=good, limits=Limits(max_kld=0.01))
    (subject,) = report.subjects
    assert subject.scores is not None
    assert subject.states is not None
    assert subject.states.start is not None
    assert (subject.states.start.layer, subject.states.start.kind) == (3, "conv")
    assert subject.scores.divergence.mean.value > 0.1
    assert len(subject.worst) == 2
    assert subject.worst[0].divergence == subject.scores.divergence.most
    assert report.verdict.passed is False
    assert "above 0.01" in report.verdict.reasons[0]
    assert read_report(describe(report)) == report


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_bundle_and_transformers_are_the_model(
    checkpoints: Checkpoints, bundle_of: Any, kind: str
) -> None:
    bundle = bundle_of(kind, "fp32").path
    transformers = f"transformers:{checkpoints[kind]}"
    report = compare(bundle, transformers, reference=f"torch:{checkpoints[kind]}")
    assert (report.reference.kind, report.reference.cached) == ("torch", False)
    for subject in report.subjects:
        assert subject.scores is not None
        # float32 in another order moves logits by 1e-6 of their size; divergence by its square.
        assert 0 <= subject.scores.divergence.mean.value < 1e-9
        assert subject.scores.same_top.value == 1
        assert all(run.equal == run.tokens == 6 for run in subject.greedy)
        assert any(package in subject.info.driver for package in ("onnxruntime", "torch"))
    ours, theirs = (subject.states for subject in report.subjects)
    assert ours is not None
    assert theirs is not None
    # Rows of half and of a whole window but its last token.
    assert [row.tokens for row in ours.rows] == [12, 23]
    assert max(error.error for row in ours.rows for error in row.errors) < 1e-5
    assert theirs.absent == "runtime transformers gives no states"
    assert report.verdict.passed


def test_fault_behind_the_last_state_is_no_sound_model(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    last = max(
        int(name.split(".")[2])
        for name in load_file(checkpoints["dense"] / "model.safetensors")
        if ".layers." in name
    )
    faulty = spoil(
        checkpoints["dense"], tmp_path / "faulty", f"layers.{last}.feed_forward.w2.weight"
    )
    report = compare(f"torch:{faulty}", reference=f"torch:{checkpoints['dense']}")
    states = report.subjects[0].states
    assert states is not None
    assert states.start is not None
    assert (states.start.layer, states.start.kind) == (last, "logits")
    assert read_report(describe(report)) == report


def test_bundle_of_another_model_is_told(checkpoints: Checkpoints, bundle_of: Any) -> None:
    report = compare(bundle_of("moe", "fp32").path, reference=f"torch:{checkpoints['dense']}")
    (subject,) = report.subjects
    assert subject.remarks[-1].startswith("another model than the reference: differs in ")


def test_states_of_other_layers_are_not_compared() -> None:
    report = compare("torch:synthetic:tiny-moe", reference="torch:synthetic:tiny-dense")
    (subject,) = report.subjects
    assert subject.states is not None
    assert subject.states.absent == "the reference has other layers"


def test_reference_with_a_short_context_shortens_windows_and_texts(
    checkpoints: Checkpoints, bundle_of: Any, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    export(str(checkpoints["dense"]), short, precision="fp32", context_length=16)
    wish = Wish(2, 2, 60)
    report = compare(bundle_of("dense", "fp32").path, reference=short, wish=wish)
    (subject,) = report.subjects
    assert subject.failure == ""
    assert report.protocol.length == 16
    # A prompt of 8 tokens, and what the reference has room to read behind it.
    assert [run.tokens for run in subject.greedy] == [8, 8]


def test_rounded_reference_is_no_fault_of_an_exact_subject(bundle_of: Any) -> None:
    exact, rounded = bundle_of("dense", "fp32").path, bundle_of("dense", "int8").path
    (subject,) = compare(exact, reference=rounded).subjects
    assert subject.states is not None
    assert subject.states.rows
    assert subject.states.start is None


def test_saved_base_file_is_a_reference(
    checkpoints: Checkpoints, bundle_of: Any, tmp_path: Path
) -> None:
    bundle, file = bundle_of("dense", "int4").path, tmp_path / "ours.kld"
    exact = compare(bundle, reference=f"torch:{checkpoints['dense']}", save_base=file)
    base = compare(bundle, reference=f"base:{file}")
    ours, theirs = (report.subjects[0].scores for report in (exact, base))
    assert ours is not None
    assert theirs is not None
    # Rounding to 16 bits brings up to 7e-5 nats a position, and some positions fewer tokens.
    assert theirs.divergence.mean.value == pytest.approx(ours.divergence.mean.value, abs=1e-4)
    assert base.protocol.positions == exact.protocol.positions
    assert 0 < base.reference.resolution < 1e-4
    assert base.subjects[0].greedy == ()
    assert "no model behind a base file" in base.subjects[0].remarks[0]
    assert base.subjects[0].states is not None
    assert base.subjects[0].states.absent == "the reference gives no states"
    with pytest.raises(GenerationError, match="leave --text out"):
        compare(bundle, reference=f"base:{file}", text=tmp_path / "mine.txt")


def test_bundle_is_a_reference_too(bundle_of: Any, cache: Path) -> None:
    report = compare(bundle_of("dense", "int8").path, reference=bundle_of("dense", "fp32").path)
    assert report.reference.kind == "bundle"
    assert report.subjects[0].greedy
    assert list(cache.iterdir()) == []


def test_subject_that_fails_does_not_lose_the_others(
    checkpoints: Checkpoints, bundle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, other = bundle_of("dense", "int4").path, bundle_of("dense", "int8").path
    score = RuntimeScorer.score

    def fail_in_the_middle(self: RuntimeScorer, *given: Any) -> Any:
        for number, scored in enumerate(score(self, *given)):
            if number == 1 and "int4" in self._what:
                raise RuntimeError("the driver\nwent away")
            yield scored

    monkeypatch.setattr(RuntimeScorer, "score", fail_in_the_middle)
    report = compare(bundle, other, reference=f"torch:{checkpoints['dense']}")
    failed, fine = report.subjects
    assert failed.failure == "RuntimeError: the driver went away"
    assert failed.scores is None
    assert fine.scores is not None
    assert report.verdict.passed is False
    assert report.verdict.reasons == (f"{failed.info.name}: RuntimeError: the driver went away",)


def test_device_that_is_not_there_is_told_before_the_reference_is_computed(
    bundle_of: Any, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*anything: object) -> None:
        raise AssertionError("the reference was computed")

    monkeypatch.setattr(StreamedScorer, "score", fail)
    with pytest.raises(Lfm2DeployError, match="cannot run on 'gpu'"):
        compare(
            f"{bundle_of('dense', 'int4').path}@gpu",
            reference=f"torch:{checkpoints['dense']}",
            cost=True,
        )


def test_cost_is_measured_of_bundles(bundle_of: Any, checkpoints: Checkpoints) -> None:
    report = compare(
        bundle_of("dense", "int4").path,
        reference=f"torch:{checkpoints['dense']}",
        cost=True,
        quick=True,
    )
    cost = report.subjects[0].cost
    assert cost is not None
    assert cost.context == measure.COST_CONTEXT
    assert min(cost.prefill, cost.decode, cost.first_token_ms, cost.load_s) > 0


def test_other_vocabulary_is_told(bundle_of: Any) -> None:
    with pytest.raises(GenerationError, match=r"vocabularies differ: 512 and .* 4,096"):
        compare(bundle_of("dense", "int4").path, reference=f"torch:{DEMO_MODEL}")


@pytest.mark.parametrize(
    ("subjects", "reference", "words"),
    [
        ((), None, "name at least one bundle"),
        (("no-such-folder",), None, "'no-such-folder' was not found: expected"),
        (("no-such-folder@gpu",), None, "was not found"),
        (("torch:",), None, "names no model"),
        (("torch:synthetic:tiny-dense",), "base:", "names no file: write base:FILE"),
        (("torch:synthetic:tiny-dense",), None, "nothing to compare with"),
        (("base:f.kld",), "torch:synthetic:tiny-dense", "can be the reference"),
        (("torch:synthetic:tiny-dense",) * 2, None, "given twice: leave one out"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    subjects: Sequence[str], reference: str | None, words: str
) -> None:
    with pytest.raises(GenerationError, match=words):
        compare(*subjects, reference=reference)


def test_text_beside_a_base_file_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"brings its own tokens, so .* leave --text out"):
        compare_models(
            ["torch:synthetic:tiny-dense"],
            reference=f"base:{tmp_path / 'absent.kld'}",
            settings=Settings(text=tmp_path / "mine.txt"),
            progress=lambda what, done, total: pytest.fail(what),
        )


@pytest.mark.parametrize(
    ("named", "made_from", "other"),
    [
        (Origin("folder", "base"), Origin("folder", "ft"), True),
        (Origin("folder", "ft"), Origin("folder", "ft"), False),
        (Origin("folder", "LFM2-350M"), Origin("hub", "LiquidAI/LFM2-350M", "abc"), False),
        (Origin("hub", "LiquidAI/LFM2-350M", "1"), Origin("hub", "LiquidAI/LFM2-350M", "2"), True),
        (Origin("folder", "ft"), Origin("hub", "LiquidAI/LFM2-350M", "abc"), True),
        (Origin("folder", "m"), Origin("hub", "a/m", "", "lora"), True),
    ],
)
def test_reference_that_is_not_what_a_bundle_was_made_from_is_known(
    named: Origin, made_from: Origin, other: bool
) -> None:
    assert _is_other(named, made_from) is other


def test_checkpoint_folder_is_told_from_a_bundle(checkpoints: Checkpoints) -> None:
    with pytest.raises(
        GenerationError, match=r"is a checkpoint, not a bundle: .*--precision int8,int4"
    ):
        compare(checkpoints["dense"])


def test_bundle_of_a_folder_asks_for_its_checkpoint(bundle_of: Any) -> None:
    with pytest.raises(Lfm2DeployError, match="--reference torch:FOLDER"):
        compare(bundle_of("dense", "int4").path)


def test_damaged_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        compare(tmp_path)


@pytest.mark.parametrize(
    "can",
    [
        Capabilities(appends_many=True, rewinds=True, max_batch_size=1, scores_all=True),
        Capabilities(appends_many=False, rewinds=True, max_batch_size=1, scores_all=True),
        Capabilities(appends_many=True, rewinds=False, max_batch_size=1, scores_all=False),
        Capabilities(appends_many=False, rewinds=False, max_batch_size=1, scores_all=False),
    ],
)
@pytest.mark.parametrize("first", [0, 2, 4])
def test_every_runtime_gives_the_same_logits_in_its_own_way(can: Capabilities, first: int) -> None:
    row, logits = [3, 1, 4, 1, 5], hash_logits(16)
    scorer = RuntimeScorer(FakeRuntime(logits, vocab_size=16, capabilities=can), (), "")
    (scored,) = scorer.score([Request(row, first, states=True)], ignore_progress)
    wanted = [logits(row[: at + 1]) for at in range(first, 5)]
    assert np.array_equal(scored.logits, wanted)
    assert scored.states is None


def test_logits_that_are_not_finite_are_told_with_their_place() -> None:
    def overflow(history: Sequence[int]) -> Any:
        return np.full(16, np.nan if len(history) > 3 else 0, np.float32)

    scorer = RuntimeScorer(FakeRuntime(overflow, vocab_size=16), (), "")
    with pytest.raises(GenerationError, match=r"not finite .* at 2 positions, first at position 3"):
        list(scorer.score([Request([1, 2, 3, 4, 5], 1)], ignore_progress))


def test_reference_that_overflows_is_no_reference(checkpoints: Checkpoints, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoints["dense"], tmp_path / "huge")
    tensors = load_file(copy / "model.safetensors")
    for name in ("layers.0.conv.out_proj.weight", "layers.0.feed_forward.w2.weight"):
        tensors[f"model.{name}"] = tensors[f"model.{name}"] * np.float32(1e38)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(GenerationError, match="the reference gives logits that are not finite"):
        compare(f"torch:{checkpoints['dense']}", reference=f"torch:{copy}")


def test_rounded_mixture_shows_its_fault_and_no_other(
    checkpoints: Checkpoints, bundle_of: Any, tmp_path: Path
) -> None:
    bundle = bundle_of("moe", "int8").path
    faulty = spoil(checkpoints["moe"], tmp_path / "faulty", "layers.3.conv.in_proj.weight")
    starts = []
    for checkpoint in (checkpoints["moe"], faulty):
        (subject,) = compare(bundle, reference=f"torch:{checkpoint}").subjects
        assert subject.states is not None
        starts.append(subject.states.start)
    assert starts[0] is None
    assert starts[1] is not None
    assert (starts[1].layer, starts[1].kind) == (3, "conv")


def test_one_bundle_written_in_two_ways_is_one(bundle_of: Any) -> None:
    bundle = bundle_of("dense", "int4").path
    with pytest.raises(GenerationError, match=r"/ is given twice, first as .*int4.*: leave one"):
        compare(bundle, f"{bundle}/")
    with pytest.raises(GenerationError, match="nothing to compare"):
        compare(bundle, reference=f"{bundle}/")


def test_device_is_the_subjects_and_not_the_references(
    bundle_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, asked = str(bundle_of("dense", "int8").path), []
    load = ort.load

    def load_anywhere(bundle: Any, threads: int | None, device: str = "cpu") -> Any:
        asked.append(device)
        return load(bundle, threads=threads)

    monkeypatch.setattr(places, "find_runtime_of", lambda bundle, name=None: load_anywhere)
    report = compare_models(
        [bundle], reference=bundle, settings=settings(), threads=1, device="GPU"
    )
    assert sorted(set(asked)) == ["cpu", "gpu"]
    (subject,) = report.subjects
    assert subject.info.name == f"{Path(bundle).name}@gpu"
    assert report.reference.name == Path(bundle).name
    assert subject.scores is not None
    with pytest.raises(GenerationError, match="nothing to compare"):
        compare_models([bundle], reference=f"{bundle}@gpu", settings=settings(), device="gpu")


def test_device_without_a_name_is_refused(bundle_of: Any) -> None:
    with pytest.raises(GenerationError, match=r"names no device: write .*@gpu, or "):
        compare(f"{bundle_of('dense', 'int4').path}@")
