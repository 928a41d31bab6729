"""README.md: what it says, what it does not say, and what people write into it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lfm2_deploy.bundle import CARD, EMBED_FILE, MEASUREMENTS, list_foreign, open_bundle, seal
from lfm2_deploy.card.measurements import Figure, add_measurements
from lfm2_deploy.card.write import begin_card, make_card, write_card
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import BundleError
from lfm2_deploy.imported import ImportedRecord
from lfm2_deploy.manifest import BlobRecord, ReaderRecord

from ..bundle.made_up import FILES, MADE  # noqa: TID252
from .conftest import Make
from .test_measurements import measured


def read(bundle: object) -> str:
    return (Path(bundle.path) / CARD).read_text(encoding="utf-8")  # type: ignore[attr-defined]


def test_card_without_measurements_shows_no_figure_of_quality(make: Make) -> None:
    bundle = make()
    text = read(bundle)
    assert f"not measured; run `lfm2-deploy compare ./{bundle.path.name} --record`" in text
    assert "**not checked**" in text
    for word in ("KL divergence", "tok/s", "passed", "perplexity"):
        assert word not in text
    assert "(calculated)" in text


def test_measured_figures_stand_in_the_card_with_device_and_date(make: Make) -> None:
    bundle = make()
    add_measurements(bundle, [measured(bundle), measured(bundle, kind="check", outcome="passed")])
    write_card(bundle)
    text = read(bundle)
    assert "KL divergence 0.02134 ± 0.00081 nats against torch" in text
    assert "**Checked on** | cpu: executed, canary passed (2026-11-30)" in text
    assert "not measured" not in text


def test_measurement_of_other_bytes_is_not_shown(make: Make) -> None:
    bundle = make()
    add_measurements(bundle, [replace(measured(bundle), bundle="other")])
    write_card(bundle)
    assert "KL divergence" not in read(bundle)


def test_compiled_graph_is_told_as_compiled_and_not_as_run(make: Make) -> None:
    blob = BlobRecord("decode", "input_ids", "decode.4000.blob", "4000", "vcl 7", "2026.4")
    text = read(make(files={"decode.4000.blob": b"blob"}, blobs=(blob,)))
    assert "| NPU 4000 | **compiled** | ahead of time, not executed | vcl 7 |" in text
    assert "NPU 4000: compiled, not run" in text


def test_three_readers_at_least_and_only_those_whose_files_are_there(make: Make) -> None:
    text = read(make())
    assert re.findall("^### (.*)$", text, re.MULTILINE) == [
        "lfm2-deploy",
        "Optimum (optimum-onnx)",
        "OpenAI's API (through lfm2-deploy)",
    ]
    assert "export again with `--io transformersjs`" in text
    files = {"onnx/model_q4.onnx": b"graph", "genai_config.json": b"{}"}
    readers = (
        ReaderRecord("genai", "model.onnx"),
        ReaderRecord("transformersjs", "onnx/model_q4.onnx"),
    )
    text = read(make("js", files, readers=readers))
    assert re.findall("^### (.*)$", text, re.MULTILINE) == [
        "lfm2-deploy",
        "onnxruntime-genai",
        "transformers.js",
        "Optimum (optimum-onnx)",
    ]
    assert '  dtype: "q4",' in text
    assert "export again with `--io transformersjs`" not in text


@pytest.mark.parametrize(
    ("device", "row", "line"),
    [
        (
            "CPU (AMD EPYC)",
            "| CPU (AMD EPYC) | **executed**",
            "; Intel NPUs (OpenVINO): not checked",
        ),
        ("NPU (Intel AI Boost)", "| NPU (Intel AI Boost) | **executed**", ""),
    ],
)
def test_cpu_in_an_npus_place_leaves_the_npu_unchecked(
    make: Make, device: str, row: str, line: str
) -> None:
    bundle = make(target="npu", runtime="openvino")
    add_measurements(bundle, [replace(measured(bundle, kind="check"), device=device)])
    text = make_card(bundle)
    assert row in text
    assert f"(2026-11-30){line} |" in text
    assert ("| Intel NPUs (OpenVINO) | **not checked** |" in text) is bool(line)


def test_how_it_was_made_names_what_the_manifest_tells(make: Make) -> None:
    part = Origin("hub", "LiquidAI/LFM2-VL-450M", part="text")
    text = read(make("embeds", {EMBED_FILE: b"graph"}, origin=part, model=part.name))
    assert "--context 64 --part text --inputs-embeds" in text
    assert "Made from the text part of [LiquidAI/LFM2-VL-450M]" in text
    assert "export again" not in text  # `--io` is refused with --inputs-embeds
    record = ImportedRecord("onnx", "builder 1.0", "onnx/model_q4.onnx", ())
    text = read(make("imported", imported=record))
    assert "lfm2-deploy import SOURCE --target cpu" in text
    hub = replace(record, repository="onnx-community/LFM2-350M-ONNX", revision="0123abcd")
    of_hub = read(make("of-hub", imported=hub))
    assert "import onnx-community/LFM2-350M-ONNX --target cpu" in of_hub
    assert f"--variant {record.file} --revision 0123abcd" in of_hub
    assert "onnx graph onnx/model_q4.onnx, made by builder 1.0" in text
    assert "nothing yet; run `lfm2-deploy compare ./imported --record`" in text
    assert "lfm2-deploy check" not in text
    assert "Optimum" not in text


def test_file_of_a_gguf_repository_is_told_with_its_repository(make: Make) -> None:
    name = "LiquidAI/LFM2-350M-GGUF/LFM2-350M-Q4_0.gguf"
    text = read(make(origin=Origin("hub", name, "0123456789abcdef"), model=name))
    assert "`LFM2-350M-Q4_0.gguf` of [LiquidAI/LFM2-350M-GGUF](https://" in text
    assert f"lfm2-deploy export {name} --target" in text


def test_snippets_name_the_folder_that_a_bundle_will_have(make: Make, tmp_path: Path) -> None:
    scratch = make(".my fish.partial").path
    begin_card(scratch, tmp_path / "my fish")
    text = (scratch / CARD).read_text(encoding="utf-8")
    assert 'lfm2_deploy.load("./my fish")' in text
    assert "`lfm2-deploy compare './my fish' --record`" in text


def test_own_text_above_and_below_stays(make: Make) -> None:
    bundle = make()
    card = bundle.path / CARD
    front, begin, ours = card.read_text().partition("<!-- lfm2-deploy: begin")
    card.write_text(f"{front}My whale model.\n\n{begin}{ours}\nSee *also* the sea.\n")
    add_measurements(bundle, [measured(bundle)])
    write_card(bundle)
    text = card.read_text()
    assert text.index("My whale model.") < text.index("lfm2-deploy: begin")
    assert text.index("lfm2-deploy: end") < text.index("See *also* the sea.")
    assert "0.02134" in text
    write_card(bundle)
    assert card.read_text() == text
    write_card(bundle, overwrite=True)
    assert "whale model" not in card.read_text()


@pytest.mark.parametrize(
    "mark", ["<!-- lfm2-deploy: begin; x -->\n", "<!-- lfm2-deploy: end -->\n"]
)
def test_card_with_half_of_the_marks_loses_nothing(make: Make, mark: str) -> None:
    bundle = make()
    (bundle.path / CARD).write_text(f"# Mine\n{mark}and more\n")
    write_card(bundle)
    text = read(bundle)
    assert "# Mine\nand more\n" in text
    assert text.count("lfm2-deploy: begin") == text.count("lfm2-deploy: end") == 1


def test_bytes_that_are_no_text_survive(make: Make) -> None:
    bundle = make()
    (bundle.path / CARD).write_bytes(b"caf\xe9\n")
    write_card(bundle)
    assert b"caf\xe9" in (bundle.path / CARD).read_bytes()


def test_repository_is_kept_once_it_is_told(make: Make) -> None:
    bundle = make()
    write_card(bundle, "somebody/whales")
    assert "lfm2-deploy pull somebody/whales" in read(bundle)
    write_card(bundle)
    assert "lfm2-deploy pull somebody/whales" in read(bundle)
    write_card(bundle, "")
    assert "pull somebody" not in read(bundle)


def test_hostile_names_become_neither_markup_nor_commands(make: Make) -> None:
    name = "<img src=x>|`rm`\n# head [a](http://b)\u202e"
    bundle = make(model=name, origin=Origin("folder", name), notes=(name,), target="cpu")
    text = read(bundle)
    tokens = [
        token
        for block in MarkdownIt("commonmark").enable("table").parse(text.partition("\n---\n")[2])
        for token in (block, *(block.children or ()))
    ]
    markup = {token.content.strip() for token in tokens if token.type.startswith("html")}
    assert not [html for html in markup if "img" in html]
    assert not [token for token in tokens if token.type == "link_open"]
    headings = [token for token in tokens if token.type == "heading_open" and token.tag == "h1"]
    assert len(headings) == 1
    assert "\u202e" not in text


def test_new_bundle_takes_over_what_was_written_by_hand(make: Make, tmp_path: Path) -> None:
    old = make("old", origin=Origin("hub", "LiquidAI/LFM2-350M"))
    card = old.path / CARD
    text = card.read_text().replace("tags:", "language: en\ntags:", 1)
    card.write_text(f"{text}\nMine.\n")
    add_measurements(old, [measured(old)])
    for name, content in FILES.items():
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / name).write_bytes(content)
    seal(tmp_path / "new", replace(MADE, origin=Origin("hub", "LiquidAI/LFM2-700M")))
    begin_card(tmp_path / "new", old.path)
    new = (tmp_path / "new" / CARD).read_text()
    assert "Mine." in new
    assert "language: en" in new
    # What nobody wrote by hand is of the new one.
    assert "base_model: LiquidAI/LFM2-700M" in new
    assert "LFM2-350M" not in new
    # The same graphs and weights: what was measured holds.
    assert "0.02134" in new
    (tmp_path / "new" / "model.onnx").write_bytes(b"other")
    (tmp_path / "new" / MEASUREMENTS).unlink()
    seal(tmp_path / "new", MADE)
    begin_card(tmp_path / "new", old.path)
    assert not (tmp_path / "new" / MEASUREMENTS).exists()
    assert "0.02134" not in (tmp_path / "new" / CARD).read_text()


def test_new_bundle_is_made_whatever_the_old_card_is(make: Make, tmp_path: Path) -> None:
    old = make("old")
    (old.path / "manifest.json").write_text("{")
    (old.path / MEASUREMENTS).write_text("{")
    new = make("new")
    begin_card(new.path, old.path)
    assert read(new).count("lfm2-deploy: begin") == 1
    begin_card(new.path, tmp_path / "absent")


def test_card_and_measurements_belong_to_a_bundle_and_are_not_hashed(make: Make) -> None:
    bundle = make()
    add_measurements(bundle, [measured(bundle)])
    assert list_foreign(bundle.path) == []
    assert not {CARD, MEASUREMENTS} & bundle.manifest.files.keys()
    seal(bundle.path, MADE)  # an export that went on after its card was written
    assert not {CARD, MEASUREMENTS} & open_bundle(bundle.path).manifest.files.keys()


def test_folder_that_takes_no_files_is_one_line(make: Make) -> None:
    bundle = make()
    (bundle.path / CARD).unlink()
    (bundle.path / CARD).mkdir()
    (bundle.path / CARD / "x").touch()
    with pytest.raises(BundleError, match=r"README\.md cannot be written \(.*copy the bundle"):
        write_card(bundle)
    assert not list(bundle.path.glob(".README*"))


def test_same_bundle_gives_the_same_card(make: Make) -> None:
    assert make_card(make("a"), "x/y") == make_card(make("b"), "x/y")


def test_figures_of_an_evaluation_stand_with_their_errors(make: Make) -> None:
    bundle = make()
    figures = (Figure("arc_easy acc", 0.5123, 0.0102),)
    one = measured(bundle, kind="eval", figures=figures, protocol="lm-evaluation-harness arc_easy")
    add_measurements(bundle, [one])
    write_card(bundle)
    assert "| arc\\_easy acc | 0.512 ± 0.010 |" in read(bundle)
