"""`lfm2-deploy verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.commands.passage import choose_passage
from lfm2_deploy.commands.verify import judge
from lfm2_deploy.compare.compare import Comparison
from lfm2_deploy.compare.origin import locate_origin, open_reference
from lfm2_deploy.contracts import Origin, ignore_progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import SourceError

FEW = ("--tokens", "64", "--greedy", "4", "--threads", "1")
EXACT = Comparison(
    positions=10,
    max_error=1e-6,
    scale=10.0,
    kld=1e-12,
    kld_error=1e-13,
    same_top=1.0,
    reference_perplexity=5.0,
    tested_perplexity=5.0,
    greedy_tokens=8,
    greedy_equal=8,
    device="cpu",
)


def test_demo_bundle_finds_its_model_and_passes(run: Callable, bundle: Path) -> None:
    result = run("verify", bundle, *FEW)
    assert result.exit_code == 0
    for words in ("KL divergence", "Pride and Prejudice", "passed", "0.2 (the default of int4)"):
        assert words in result.stdout


def test_fp32_bundle_of_a_random_model_is_exact(run: Callable, random_bundle: Path) -> None:
    result = run("verify", random_bundle, *FEW, "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 0
    assert record["passed"] is True
    assert record["greedy_equal"] == record["greedy_tokens"] == 4
    assert record["max_error"] <= 1e-4 * record["scale"]
    assert "random tokens" in record["text"]
    assert sum(record["rows"]) == record["positions"] == 64


def test_other_weights_fail_with_exit_code_one(run: Callable, random_bundle: Path) -> None:
    result = run("verify", random_bundle, *FEW, "--against", "synthetic:tiny-dense@1")
    assert result.exit_code == 1
    assert "failed: logit error" in result.stdout
    assert "error" not in result.stderr


def test_limit_of_the_users_own_is_applied(run: Callable, bundle: Path) -> None:
    result = run("verify", bundle, *FEW, "--max-kld", "1e-9", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (record["passed"], record["rule"]) == (False, "KL divergence at most 1e-09 (as asked)")


def test_text_of_the_users_own_is_read(run: Callable, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("My dear Jane, come at once.", encoding="utf-8")
    record = json.loads(run("verify", bundle, *FEW, "--text", file, "--json").stdout)
    assert record["text"] == str(file)
    assert 5 < record["positions"] < 20


def test_empty_text_is_refused(
    run: Callable, fails: Callable, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "empty.txt"
    file.touch()
    fails(run("verify", bundle, "--text", file), "empty")


def test_other_architecture_is_refused(run: Callable, fails: Callable, bundle: Path) -> None:
    result = run("verify", bundle, *FEW, "--against", "synthetic:tiny-dense")
    fails(result, "vocabularies differ")


@pytest.mark.parametrize(
    ("precision", "changes", "passed"),
    [
        ("fp32", {}, True),
        ("fp32", {"max_error": 0.002}, False),
        ("fp32", {"greedy_equal": 7}, False),
        ("fp16", {"kld": 9e-4}, True),
        ("fp16", {"kld": 2e-3}, False),
        ("int8", {"kld": 0.04, "greedy_equal": 0}, True),
        ("int4", {"kld": 0.19}, True),
        ("int4", {"kld": 0.21}, False),
        ("int4", {"kld": float("nan")}, False),
    ],
)
def test_each_precision_has_its_rule(precision: str, changes: dict, passed: bool) -> None:
    verdict = judge(replace(EXACT, **changes), precision, None)
    assert verdict.passed is passed
    assert f"the default of {precision}" in verdict.rule


def with_origin(bundle: Path, origin: Origin) -> Bundle:
    opened = open_bundle(bundle)
    return replace(opened, manifest=replace(opened.manifest, origin=origin))


def test_origin_on_the_hub_is_taken_at_its_commit(bundle: Path) -> None:
    opened = with_origin(bundle, Origin("hub", "LiquidAI/LFM2-350M", "abc123"))
    assert locate_origin(opened) == ("LiquidAI/LFM2-350M", "abc123")


def test_synthetic_origin_is_taken_with_its_seed(bundle: Path) -> None:
    opened = with_origin(bundle, Origin("synthetic", "tiny-moe", "3"))
    assert locate_origin(opened) == ("synthetic:tiny-moe@3", None)


def test_folder_that_was_not_recorded_must_be_given(bundle: Path) -> None:
    opened = with_origin(bundle, Origin("folder", "my-finetune"))
    with pytest.raises(SourceError, match=r"my-finetune.*--against"):
        locate_origin(opened)


def test_gguf_file_that_was_not_recorded_must_be_given(bundle: Path) -> None:
    opened = with_origin(bundle, Origin("file", "a-Q4_0.gguf"))
    with pytest.raises(SourceError, match=r"from a file named 'a-Q4_0.gguf'.*torch:FILE"):
        locate_origin(opened)


def test_adapter_that_was_not_recorded_must_be_given(bundle: Path) -> None:
    opened = with_origin(bundle, Origin("folder", "model", adapter="my-lora"))
    with pytest.raises(SourceError, match=r"my-lora.*--adapter"):
        open_reference(opened, str(DEMO_MODEL), None, ignore_progress)


def test_rows_begin_with_the_start_token_and_fit_the_context(bundle: Path) -> None:
    opened = open_bundle(bundle)
    small = replace(opened, manifest=replace(opened.manifest, context_length=40))
    passage = choose_passage(small, None, 100, 8)
    assert [len(row) for row in passage.rows] == [32, 32, 32, 8]
    assert {row[0] for row in passage.rows} == {opened.config.bos_token_id}


def test_passage_is_never_longer_than_asked(random_bundle: Path) -> None:
    passage = choose_passage(open_bundle(random_bundle), None, 600, 0)
    assert [len(row) for row in passage.rows] == [512, 88]
