"""`lfm2-deploy plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer

from lfm2_deploy.commands.sizes import parse_size
from lfm2_deploy.errors import ExportError
from lfm2_deploy.units import format_limit

HARD = ("--ram", "32GB", "--bandwidth", "40")


def plan(run: Callable, *words: object) -> dict[str, Any]:
    result = run("plan", *words, "--json")
    assert result.exit_code == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_the_24b_fits_32_gb_in_int4(run: Callable) -> None:
    record = plan(run, "synthetic:LFM2-24B-A2B", *HARD, "--context", "32768")
    assert record["recommended"] == "int4"
    int4 = record["precisions"]["int4"]
    assert int4["fits"]
    assert int4["weights_bytes"] < 13.5e9
    assert int4["bound_tokens_per_second"] == pytest.approx(40e9 / int4["read_per_token_bytes"])
    assert not record["precisions"]["fp16"]["fits"]
    assert record["bandwidth_was"] == "given"


def test_a_small_model_on_a_fast_machine_need_not_be_rounded(run: Callable) -> None:
    record = plan(run, "synthetic:LFM2-350M", "--ram", "32GB", "--bandwidth", "200")
    assert record["recommended"] == "fp32"


def test_longest_context_ends_at_the_models_positions(run: Callable) -> None:
    record = plan(run, "synthetic:LFM2-350M", *HARD)
    assert record["precisions"]["int4"]["longest_context"] == 128_000


def test_nothing_that_fits_is_said(run: Callable) -> None:
    result = run("plan", "synthetic:LFM2-24B-A2B", "--ram", "8GiB", "--bandwidth", "40")
    assert result.exit_code == 0
    assert "nothing fits 8.59 GB" in result.stderr
    assert result.stdout.count("does not fit") == 4


def test_table_and_facts_are_for_people(run: Callable) -> None:
    result = run("plan", "synthetic:LFM2-8B-A1B", *HARD, "--precision", "int8")
    assert "in int8" in result.stdout
    assert "recommended" in result.stdout
    assert "40.0 GB/s as given" in result.stdout


def test_bandwidth_is_measured_unless_given(run: Callable) -> None:
    record = plan(run, "synthetic:tiny-moe", "--ram", "1GB")
    assert record["bandwidth_was"] == "measured"
    # Any machine of this century's reads between 1 and 2,000 GB/s.
    assert 1e9 < record["bandwidth_bytes_per_second"] < 2e12


def test_no_weights_of_a_hub_model_are_downloaded(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.checkpoint import open_checkpoint, source

    config = open_checkpoint("synthetic:LFM2-350M")
    monkeypatch.setattr(source, "open_hub", lambda *arguments: pytest.fail("downloads weights"))
    monkeypatch.setattr(source, "describe_hub", lambda *a: (config.config, config.origin))
    assert plan(run, "LiquidAI/LFM2-350M", *HARD)["model"] == "LFM2-350M"


def test_plan_runs_without_what_exporting_needs() -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnx_ir')))"
    start = "from lfm2_deploy.cli import main; raise SystemExit(main())"
    words = [sys.executable, "-c", f"{hidden}; {start}", "plan", "synthetic:LFM2-350M", *HARD]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "int4" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts", "code"),
    [
        (("--target", "toaster"), ("'toaster'", "cpu"), 2),
        (("--context", "999999"), ("--context 999999", "128000"), 1),
    ],
)
def test_what_is_not_possible_is_said_in_a_line(
    run: Callable, fails: Callable, words: Any, parts: Any, code: int
) -> None:
    fails(run("plan", "synthetic:LFM2-350M", *HARD, *words), *parts, code=code)


def test_precision_that_a_model_cannot_have_says_why(
    run: Callable, fails: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exporters.quantize.plan as planning

    def refuse(weights: Any, precision: str) -> Any:
        if precision == "int4":
            raise ExportError("this one cannot be divided")
        return original(weights, precision)

    original = planning.plan_tensors
    monkeypatch.setattr(planning, "plan_tensors", refuse)
    shown = run("plan", "synthetic:tiny-moe", *HARD)
    assert "not possible" in shown.stdout
    fails(run("plan", "synthetic:tiny-moe", *HARD, "--precision", "int4"), "cannot be divided")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("32GB", 32 * 10**9),
        ("16GiB", 16 * 2**30),
        ("24G", 24 * 10**9),
        ("1.5 gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("1000", 1000),
    ],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "32 gigs", "GB", "1e3", "--1GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size: write for example 700MB"):
        parse_size(text, "700MB")


@pytest.mark.parametrize("text", ["0", "0GB", "-1GB", "-5MB", "0.1"])
def test_size_that_is_not_above_0_is_told_so(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be above 0"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [
        (999, "999B", "999B"),
        (1_234_567, "1.2345MB", "1.2346MB"),
        (6_000_000, "6MB", "6MB"),
        (999_999, "999.999kB", "999.999kB"),
        (999_999_999, "999.9999MB", "1000MB"),
        (12_800_000_001, "12.8GB", "12.8001GB"),
    ],
)
def test_limits_are_told_so_that_they_can_be_typed_back(size: int, down: str, up: str) -> None:
    assert format_limit(size) == down
    assert format_limit(size, up=True) == up
    assert parse_size(down) <= size <= parse_size(up)
