"""What a comparison needs is looked for before anything is exported or timed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import api
from lfm2_deploy.api import compare_models
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError, RuntimeUnavailableError

from .whole import Checkpoints, settings


def _miss(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if packages were not installed, and as if all work were forbidden."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else find(name)
    )

    def fail(*anything: object, **more: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(api, "export_variants", fail)
    monkeypatch.setattr(api, "run_comparison", fail)


def test_runtime_of_a_target_is_missed_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    _miss(monkeypatch, "openvino")
    with pytest.raises(RuntimeUnavailableError, match="needs openvino, which is not installed"):
        compare_models([str(DEMO_MODEL)], targets=["cpu", "npu"])


def test_torch_is_missed_before_timing(monkeypatch: pytest.MonkeyPatch, bundle_of: Any) -> None:
    bundle = bundle_of("dense", "int4").path
    _miss(monkeypatch, "torch")
    with pytest.raises(RuntimeUnavailableError, match="the streamed torch reference needs torch,"):
        compare_models(bundle)


def test_transformers_is_missed_first_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, bundle_of: Any, checkpoints: Checkpoints
) -> None:
    bundle, other = bundle_of("dense", "int4").path, f"transformers:{checkpoints['dense']}"
    _miss(monkeypatch, "transformers")
    with pytest.raises(RuntimeUnavailableError, match=r"installed: pip install transformers$"):
        compare_models([bundle, other])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"precisions": ["int8", "int5"]}, "target cpu has no precision 'int5': expected one of"),
        ({"targets": ["cpu", "nonsense"]}, "there is no target 'nonsense'"),
    ],
)
def test_unknown_wish_is_refused_before_the_first_export(
    monkeypatch: pytest.MonkeyPatch, wish: Any, words: str
) -> None:
    _miss(monkeypatch)
    with pytest.raises((GenerationError, RuntimeUnavailableError), match=words):
        compare_models(str(DEMO_MODEL), **wish)


def test_single_path_is_one_subject(checkpoints: Checkpoints, bundle_of: Any) -> None:
    bundle = bundle_of("dense", "int4").path
    few = settings(cache=False)
    good = f"torch:{checkpoints['dense']}"
    report = compare_models(Path(bundle), reference=good, settings=few, threads=1)
    assert [subject.info.given for subject in report.subjects] == [str(bundle)]
    assert report.busy_cores is None


@pytest.mark.parametrize(
    ("subject", "reference", "words"),
    [
        ("torch:nope", None, "the folder nope does not exist"),
        ("transformers:{dense}", None, "add --reference torch:{dense}"),
        ("torch:{dense}", "{dense}", "--reference {dense} is a checkpoint: write torch:{dense}"),
    ],
)
def test_dead_end_says_the_way_out(
    checkpoints: Checkpoints, subject: str, reference: str | None, words: str
) -> None:
    dense = checkpoints["dense"]
    if subject.startswith("transformers:"):
        pytest.importorskip("transformers", reason="not run: transformers is not installed")
    named = None if reference is None else reference.format(dense=dense)
    with pytest.raises(GenerationError) as caught:
        compare_models(subject.format(dense=dense), reference=named)
    assert words.format(dense=dense) in str(caught.value)
