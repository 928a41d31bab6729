"""Vision and audio models on the command line: refused by name, and their text part made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]

# MODEL is the checkpoint of a vision-language model.
WHOLE = [
    ("export", "MODEL", "OUT"),
    ("export", "MODEL", "OUT", "--target", "webgpu"),
    ("plan", "MODEL", "--ram", "8GB", "--bandwidth", "10"),
    ("pull", "MODEL"),
    ("inspect", "MODEL"),
    ("compare", "MODEL", "--precision", "int4"),
    ("compare", "transformers:MODEL", "--reference", "torch:MODEL"),
    ("verify", "MODEL"),
    ("generate", "MODEL", "Hi"),
    ("check", "MODEL"),
    ("bench", "MODEL"),
    ("eval", "MODEL", "--tasks", "lfm2_demo_ending"),
]


@pytest.fixture
def model(vision_checkpoints: Mapping[str, Path]) -> Path:
    return vision_checkpoints["dense"]


@pytest.mark.parametrize("words", WHOLE, ids=lambda words: " ".join(words[:2]))
def test_whole_model_is_refused_in_one_line_with_the_way_out(
    words: tuple[str, ...], model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    out = tmp_path / "out"
    result = run(*(w.replace("MODEL", str(model)).replace("OUT", str(out)) for w in words))
    assert result.exit_code != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"lfm2-deploy export {model} --part text" in line
    assert not out.exists()


def test_text_part_is_exported_verified_compared_and_shown(
    model: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    words = ("export", model, out, "--part", "text", "--inputs-embeds", "--precision", "fp32")
    made = run(*words, "--json")
    assert made.exit_code == 0, made.stderr
    (note,) = json.loads(made.stdout)["notes"]
    assert "multi_modal_projector" in note
    assert "vision_tower" in note

    shown = run("inspect", out)
    assert f"the text part of a folder named {model.name}" in shown.stdout
    assert "embed_tokens.onnx looks tokens up" in shown.stdout
    assert run("check", out).exit_code == 0
    verified = run("verify", out, "--against", model)
    assert verified.exit_code == 0, verified.stderr
    report = run("compare", out, "--reference", f"torch:{model}", "--quick", "--json")
    assert report.exit_code == 0, report.stderr


def test_text_part_is_planned_as_the_text_model(model: Path, run: Run) -> None:
    planned = run("plan", model, "--part", "text", "--ram", "8GB", "--bandwidth", "10", "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["precisions"]["int4"]["fits"]


def test_text_part_comes_into_the_store_once(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "store"))
    words = ("pull", model, "--part", "text", "--json")
    first, again = (json.loads(run(*words).stdout) for _ in range(2))
    assert first["name"] == f"{model.name}-text-cpu-int4"
    assert (first["pulled"], again["pulled"]) == (True, False)


def test_default_folder_names_the_part_and_what_it_takes(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("export", model, "--part", "text", "--inputs-embeds", "--no-canary")
    assert run(*words).exit_code == 0
    assert (tmp_path / f"{model.name}-text-embeds-cpu-int4" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--part", "vision"), "there is no part 'vision': expected text"),
        (("--part", "text", "--target", "webgpu", "--inputs-embeds"), "takes token ids only"),
        (("--part", "text", "--target", "npu", "--inputs-embeds"), "embeddings as it is"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(
    words: tuple[str, ...], told: str, model: Path, run: Run, tmp_path: Path
) -> None:
    result = run("export", model, tmp_path / "out", *words)
    assert result.exit_code != 0
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


def test_bundle_has_no_parts_to_pull(bundle: Path, run: Run) -> None:
    result = run("pull", bundle, "--part", "text")
    assert result.exit_code != 0
    assert "is a bundle already: leave --part out" in result.stderr
