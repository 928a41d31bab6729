"""`lfm2-deploy compare`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lfm2_deploy.commands.compare_report import (
    shorten,
    show_end,
    show_percent,
    split_estimate,
)
from lfm2_deploy.compare.result import Estimate
from lfm2_deploy.compare.result_json import read_report
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.machine import find_cache

FEW = ("--chunks", "2", "--length", "32", "--greedy", "4", "--no-speed", "--threads", "1")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield find_cache()


def test_report_tells_everything(run: Callable, bundle: Path) -> None:
    result = run("compare", bundle, *FEW)
    assert result.exit_code == 0, result.stderr
    for words in (
        "lfm2-demo-9m  is the reference: torch",
        "2 of 32 tokens, the second half of each scored: 30 positions",
        "speeches and scripture",
        "standard error over windows",
        "KL divergence",
        "same top",
        "where does the error start?",
        "greedy texts",
        "worst positions",
    ):
        assert words in result.stdout
    assert "passed" not in result.stdout


def test_json_is_a_report_and_nothing_else(run: Callable, bundle: Path) -> None:
    result = run("compare", bundle, *FEW, "--json")
    report = read_report(json.loads(result.stdout))
    (subject,) = report.subjects
    assert (report.protocol.windows, report.protocol.positions) == (2, 30)
    assert subject.scores is not None
    assert 0 < subject.scores.divergence.mean.value < 0.2
    assert len(subject.worst) == 5
    assert subject.cost is None


@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        (("--max-kld", "0.5"), 0, "passed; limit: KL divergence at most 0.5 nats"),
        (("--max-kld", "1e-9"), 1, "failed; limit: KL divergence at most 1e-09 nats"),
        (("--min-same-top", "1"), 1, "failed; limit: same top token at least 100.0%"),
    ],
)
def test_limits_decide_the_exit_code(
    run: Callable, bundle: Path, words: Sequence[str], code: int, verdict: str
) -> None:
    result = run("compare", bundle, *FEW, *words)
    assert result.exit_code == code
    assert verdict in result.stdout


def test_missing_device_is_a_failed_row_beside_others(run: Callable, bundle: Path) -> None:
    result = run("compare", f"{bundle}@gpu", bundle, *FEW)
    assert result.exit_code == 1
    (line,) = (line for line in result.stdout.splitlines() if "was made for the CPU" in line)
    assert "@gpu  failed  " in line
    assert result.stdout.count("no jump") == 1


def test_missing_device_alone_is_an_error(run: Callable, fails: Callable, bundle: Path) -> None:
    fails(run("compare", f"{bundle}@gpu", *FEW), "cannot run on 'gpu'")


def test_model_is_exported_in_each_precision_and_kept(run: Callable, cache: Path) -> None:
    words = ("compare", DEMO_MODEL, "--precision", "int8,int4", *FEW, "--json")
    report = read_report(json.loads(run(*words).stdout))
    names = [subject.info.name for subject in report.subjects]
    assert names == ["lfm2-demo-9m-cpu-int8", "lfm2-demo-9m-cpu-int4"]
    first, second = (subject.scores for subject in report.subjects)
    assert first is not None
    assert second is not None
    assert first.divergence.mean.value < second.divergence.mean.value
    manifests = {file: file.stat().st_mtime_ns for file in cache.glob("compared/*/*/manifest.json")}
    assert len(manifests) == 2
    given = [subject.info.given for subject in report.subjects]
    assert given == [f"{DEMO_MODEL} --target cpu --precision {p}" for p in ("int8", "int4")]
    (folder,) = {file.parent.parent for file in manifests}
    assert report.kept == f"{folder}, kept until 60 GB are full"
    again = read_report(json.loads(run(*words).stdout))
    assert again.reference.cached
    assert manifests == {file: file.stat().st_mtime_ns for file in manifests}


def test_cache_that_cannot_be_written_names_the_ways_out(
    run: Callable, fails: Callable, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")  # not even an administrator makes a folder in a file
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    fails(run("compare", bundle, *FEW), "nothing can be kept in ", "add --no-cache")
    assert run("compare", bundle, *FEW, "--no-cache").exit_code == 0
    model = ("compare", DEMO_MODEL, "--precision", "int8", *FEW)
    fails(run(*model), "no bundle can be kept in ", "export to a folder of yours")


def test_precision_of_a_bundle_is_refused(run: Callable, fails: Callable, bundle: Path) -> None:
    fails(run("compare", bundle, "--precision", "int8"), "leave --precision and --target out")


def test_base_file_is_written_and_read(run: Callable, bundle: Path, tmp_path: Path) -> None:
    base = tmp_path / "demo.kld"
    assert run("compare", bundle, *FEW, "--save-base", base).exit_code == 0
    assert base.read_bytes()[:8] == b"_logits_"
    result = run("compare", bundle, *FEW, "--reference", f"base:{base}")
    assert result.exit_code == 0, result.stderr
    assert "the reference is in 16 bits" in result.stdout


@pytest.mark.parametrize("option", ["--html", "--save-base"])
def test_place_without_a_folder_is_refused_first(
    run: Callable, fails: Callable, bundle: Path, option: str
) -> None:
    fails(run("compare", bundle, option, "no-such-folder/x"), "there is no folder", code=2)


@pytest.mark.skipif(sys.platform != "linux", reason="a folder nobody can write in: /proc")
@pytest.mark.parametrize("option", ["--html", "--save-base"])
def test_folder_that_takes_no_files_is_refused_first(
    run: Callable, fails: Callable, bundle: Path, option: str
) -> None:
    fails(run("compare", bundle, option, "/proc/x"), "nothing can be written in /proc", code=2)


@pytest.mark.parametrize("keeps", [False, True])
def test_interrupt_says_what_is_kept(
    run: Callable, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    record = cache / "references" / "made-up" / "record.json"

    def stop(*anything: object, **more: object) -> None:
        if keeps:
            record.parent.mkdir(parents=True)
            record.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("lfm2_deploy.api.compare_models", stop)
    result = run("compare", bundle)
    shutil.rmtree(record.parent, ignore_errors=True)
    expected = "stopped; kept: the reference" if keeps else "stopped; nothing was kept"
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines()[-1].startswith(expected)


def test_folder_as_text_is_one_clear_error(
    run: Callable, fails: Callable, bundle: Path, tmp_path: Path
) -> None:
    fails(run("compare", bundle, *FEW, "--text", tmp_path), "is a folder: give a text file")


def test_text_of_the_users_own_is_read(run: Callable, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("My dear Jane, come at once. " * 10, encoding="utf-8")
    result = run("compare", bundle, *FEW, "--chunks", "9", "--text", file)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"the text is long enough for \d of 9 windows", result.stdout)


def test_terminal_of_80_columns_holds_every_line(program: Sequence[str], bundle: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    longer = bundle.with_name("a-bundle-with-a-name-that-is-much-too-long-for-a-table")
    if not longer.exists():
        longer.symlink_to(bundle, target_is_directory=True)
    command = [*program[1:], "compare", str(longer), *FEW, "--max-kld", "1e-9"]
    child = pexpect.spawn(program[0], command, dimensions=(40, 80), encoding="utf-8", timeout=120)
    child.expect(pexpect.EOF)
    child.wait()  # closing would hang up on a program that has said all and is still leaving
    child.close()
    assert child.exitstatus == 1
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)
    lines = text[text.rindex("is the reference") :].splitlines()
    assert max(map(len, lines)) <= 80
    assert any("…" in line and "for-a-table" in line for line in lines)
    assert any("for-a-table  failed  KL divergence is" in line for line in lines)


def test_digits_follow_the_error() -> None:
    assert split_estimate(Estimate(0.022209, 0.001259)) == ("0.0222", "0.0013")
    assert split_estimate(Estimate(28.05, 3.7)) == ("28.1", "3.7")
    assert split_estimate(Estimate(123.4, 45.0)) == ("123", "45")
    assert split_estimate(Estimate(2.5563e-12, 1.1e-13)) == ("2.56e-12", "1e-13")
    assert split_estimate(Estimate(0.5, float("nan"))) == ("0.5", "-")


def test_text_is_cut_to_its_place() -> None:
    assert shorten("abcdefghij", 7) == "ab…ghij"
    assert shorten("abc", 7) == "abc"
    assert show_end("one\ntwo", 30) == '"one⏎two"'
    assert len(show_end("x" * 50, 20)) == 20
    assert (show_percent(0.531), show_percent(0.0029), show_percent(1e-9)) == (
        "53 %",
        "0.29 %",
        "<0.01 %",
    )
