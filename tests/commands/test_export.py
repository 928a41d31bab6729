"""`lfm2-deploy export`."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest

from exporters.quantize.plan import PRECISIONS
from lfm2_deploy.commands.options import Precision
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.unfinished import find_kept, find_unfinished


def test_export_prints_place_size_and_precision(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", "synthetic:tiny-dense", "--precision", "int8", "--context", "64")
    assert result.exit_code == 0
    place = tmp_path / "tiny-dense-cpu-int8"
    assert (place / "manifest.json").is_file()
    assert result.stdout.startswith("tiny-dense-cpu-int8  made in ")
    for fact in ("int8", "64 tokens", " kB"):
        assert fact in result.stdout
    assert "next: lfm2-deploy inspect tiny-dense-cpu-int8" in result.stderr


def test_other_programs_that_shall_read_it_are_named_with_commas(
    run: Callable, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    asked = ("synthetic:tiny-dense", place, "--io", "genai, transformersjs")
    assert run("export", *asked).exit_code == 0
    assert (place / "onnx" / "model_q4.onnx_data").is_file()
    shown = " ".join(run("inspect", place).stdout.split())
    assert "read by genai (model.onnx), transformersjs (onnx/model_q4.onnx)" in shown
    readers = json.loads(run("inspect", place, "--json").stdout)["readers"]
    assert [reader["io"] for reader in readers] == ["genai", "transformersjs"]


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("--io", "transformers"), "transformersjs", 2),
        (("--io", "transformersjs", "--target", "webgpu"), "--target cpu", 1),
    ],
)
def test_reader_that_cannot_be_is_one_line(
    run: Callable, fails: Callable, tmp_path: Path, words: Sequence[str], told: str, code: int
) -> None:
    fails(run("export", "synthetic:tiny-dense", tmp_path / "out", *words), told, code=code)


def test_rounded_layers_that_overwrite_discards_are_told(run: Callable, tmp_path: Path) -> None:
    kept = tmp_path / ".out.partial.rounded"
    kept.mkdir()
    (kept / "layer.0.json").write_text("{}")
    result = run("export", "synthetic:tiny-dense", tmp_path / "out")
    assert result.exit_code == 1
    assert f"has rounded 1 layers (kept in {kept})" in result.stderr
    assert kept.is_dir()
    result = run("export", "synthetic:tiny-dense", tmp_path / "out", "--overwrite")
    assert result.exit_code == 0
    assert "discarding 1 layers" in result.stderr
    assert not kept.exists()


def test_interrupt_while_rounding_names_where_the_layers_are(tmp_path: Path) -> None:
    (tmp_path / ".big.partial.rounded").mkdir()
    (tmp_path / ".big.partial").mkdir()
    (tmp_path / ".big.partial.rounded" / "layer.0.json").write_text("{}")
    assert find_kept(tmp_path / "big") == tmp_path / ".big.partial.rounded"


def test_json_is_one_object(run: Callable, tmp_path: Path) -> None:
    result = run("export", "synthetic:tiny-dense", tmp_path / "out", "--json")
    record = json.loads(result.stdout)
    assert record["path"] == str(tmp_path / "out")
    assert record["precision"] == "int4"
    assert record["size_bytes"] == sum(record["files"].values())


def test_place_that_holds_a_bundle_is_refused(run: Callable, fails: Callable, bundle: Path) -> None:
    fails(run("export", DEMO_MODEL, bundle), str(bundle), "--overwrite")


def test_taken_place_is_refused_before_the_model_is_looked_for(
    run: Callable, fails: Callable, bundle: Path
) -> None:
    fails(run("export", "no-such/model", bundle), "--overwrite")


def test_unknown_precision_lists_the_known(run: Callable, fails: Callable) -> None:
    result = run("export", "synthetic:tiny-dense", "--precision", "int3")
    fails(result, "'int3'", "int4", "lfm2-deploy export --help", code=2)


def test_unknown_target_lists_the_known(run: Callable, fails: Callable, tmp_path: Path) -> None:
    result = run("export", "synthetic:tiny-dense", tmp_path / "x", "--target", "toaster")
    fails(result, "'toaster'", "cpu", code=2)
    result = run("export", "synthetic:tiny-dense", tmp_path / "x", "--target", "webgp")
    fails(result, "did you mean webgpu?", code=2)
    result = run("export", "synthetic:tiny-dense", tmp_path / "x", "--quantize", "gtpq")
    fails(result, "did you mean gptq", code=2)


def test_unknown_model_lists_the_forms(run: Callable, fails: Callable, tmp_path: Path) -> None:
    fails(run("export", "nothing-here", tmp_path / "x"), "nothing-here", "synthetic:")


def test_impossible_context_leaves_nothing(run: Callable, fails: Callable, tmp_path: Path) -> None:
    result = run("export", "synthetic:tiny-dense", tmp_path / "x", "--context", "0")
    fails(result, "--context 0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts differ")
def test_interrupt_tells_how_to_go_on(program: Sequence[str], tmp_path: Path) -> None:
    place = tmp_path / "big"
    words = [*program, "export", "synthetic:LFM2.5-230M", str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while find_unfinished(place) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    *stages, last = err.decode().splitlines()
    assert all(line.endswith(" ...") for line in stages)
    assert "the same command with --resume goes on" in last
    assert not place.exists()


def test_precisions_are_those_of_the_exporter() -> None:
    assert get_args(Precision) == PRECISIONS


def test_suggested_command_can_be_pasted(run: Callable, tmp_path: Path) -> None:
    place = tmp_path / "my out & more"
    result = run("export", "synthetic:tiny-dense", place)
    suggestion = next(line for line in result.stderr.splitlines() if "next: " in line)
    words = shlex.split(suggestion.partition("next: ")[2])
    assert words[:3] == ["lfm2-deploy", "inspect", str(place)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("chat_template.jinja", "{% if %}"), ("tokenizer_config.json", "[")],
)
def test_text_file_that_load_would_refuse_is_refused_at_export(
    run: Callable, fails: Callable, tmp_path: Path, name: str, content: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    if name == "tokenizer_config.json":
        (model / "chat_template.jinja").unlink()
    (model / name).write_text(content)
    fails(run("export", model, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_compiling_for_a_target_that_is_not_is_refused_before_a_compiler_is_looked_for(
    run: Callable, tmp_path: Path, fails: Callable
) -> None:
    # It asked for openvino, which has nothing to do with DirectML.
    result = run("export", DEMO_MODEL, tmp_path / "x", "--target", "directml", "--compile")
    fails(result, "target directml is compiled where it runs: leave --compile out")


def test_help_tells_described_defaults_without_parentheses(run: Callable) -> None:
    told = " ".join(run("export", "--help").stdout.split())
    assert "[default: npu: 128, qnn: 64]" in told
    assert "[default: (" not in told


@pytest.mark.parametrize(
    ("size", "words"),
    [("banana", "700MB"), ("0", "must be above 0"), ("-5MB", "must be above 0")],
)
def test_size_that_cannot_be_is_told_how_to_be_written(
    run: Callable, fails: Callable, size: str, words: str
) -> None:
    fails(run("export", "synthetic:tiny-dense", f"--max-size={size}"), words, code=2)
