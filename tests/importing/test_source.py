"""Which export is meant: kinds, variants, and files of the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from lfm2_deploy import import_model
from lfm2_deploy.contracts import Origin, ignore_progress
from lfm2_deploy.errors import (
    BundleError,
    SourceError,
    UnsupportedModelError,
)
from lfm2_deploy.imported import parse_imported
from lfm2_deploy.importing.source import choose, find_source, list_parts

from .conftest import CHECKPOINT, GENAI_14

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = (
    "config.json",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/model.onnx_data_1",
    "onnx/model_fp16.onnx",
    "onnx/model_fp16.onnx_data",
    "onnx/model_q4.onnx",
    "onnx/model_q4.onnx_data",
    "onnx/model_quantized.onnx",
)


@pytest.mark.parametrize(
    ("variant", "file"),
    [
        ("q4", "onnx/model_q4.onnx"),
        ("fp16", "onnx/model_fp16.onnx"),
        ("fp32", "onnx/model.onnx"),
        ("q8", "onnx/model_quantized.onnx"),
    ],
)
def test_variant_names_one_graph_of_a_repository(variant: str, file: str) -> None:
    assert choose(HUB, variant, "repo") == ("onnx", file)


def test_several_variants_are_listed() -> None:
    with pytest.raises(SourceError, match=r"holds 4 variants.*fp32, fp16, q4, quantized"):
        choose(HUB, None, "repo")
    with pytest.raises(SourceError, match=r"no variant 'q5': it has fp32, fp16, q4"):
        choose(HUB, "q5", "repo")


def test_parts_of_a_graph_are_its_shards_and_no_other_variants() -> None:
    assert list_parts(HUB, "onnx/model.onnx") == list(HUB[1:4])
    assert list_parts(HUB, "openvino_model.xml") == ["openvino_model.xml", "openvino_model.bin"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("onnx/decoder_q4.onnx", "onnx/embed_images.onnx"), "vision or audio model"),
        (("config.json", "model.safetensors"), "is a checkpoint.*lfm2-deploy export"),
        (("README.md",), "no export that can be imported"),
    ],
)
def test_folder_without_an_export_says_what_it_is(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        choose(names, None, "folder")


def test_quantizations_of_gguf_files_are_variants() -> None:
    names = ("LFM2-350M-Q4_0.gguf", "LFM2-350M-F16.gguf", "LFM2-1.2B.Q8_0.gguf")
    assert choose(names, "Q4_0", "repo") == ("gguf", names[0])
    assert choose(names, "q8_0", "repo") == ("gguf", names[2])


def test_two_files_of_one_word_are_told_apart_by_their_names() -> None:
    names = ("LFM2.5-350M-Q4_0.gguf", "LFM2.5-350M-QAD-Q4_0.gguf", "LFM2.5-350M-F16.gguf")
    with pytest.raises(SourceError, match=r"has 2 variants 'Q4_0'.*350M-QAD-Q4_0\.gguf"):
        choose(names, "Q4_0", "repo")
    assert choose(names, "LFM2.5-350M-QAD-Q4_0", "repo") == ("gguf", names[1])
    graphs = ("model.onnx", "onnx/model.onnx", "onnx/model_q4.onnx")
    with pytest.raises(SourceError, match=r"holds 3 variants.*\(model, fp32, q4\)"):
        choose(graphs, None, "repo")
    assert choose(graphs, "onnx/model.onnx", "repo") == ("onnx", graphs[1])
    assert choose(("model.onnx", "onnx/model_q4.onnx"), "fp32", "repo") == ("onnx", "model.onnx")


def test_parts_and_projectors_of_gguf_files_are_no_variants() -> None:
    parts = [f"LFM2-24B-A2B-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    assert choose(("mmproj-LFM2-VL-F16.gguf", *parts), None, "repo") == ("gguf", parts[0])
    with pytest.raises(SourceError, match="parts of a vision or audio model"):
        choose(("mmproj-LFM2-VL-F16.gguf",), None, "repo")


def test_reader_for_a_graph_that_stays_as_it_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--io is for GGUF files"):
        import_model(GENAI_14, tmp_path / "b", against=str(CHECKPOINT), io=["transformersjs"])
    assert not list(tmp_path.iterdir())


def test_imported_bundle_has_a_card_and_keeps_what_was_written_into_it(tmp_path: Path) -> None:
    out = tmp_path / "b"
    import_model(GENAI_14, out, against=str(CHECKPOINT))
    card = out / "README.md"
    assert "# checkpoint · fp32 · cpu" in card.read_text()
    card.write_text(card.read_text() + "\nMine.\n")
    import_model(GENAI_14, out, against=str(CHECKPOINT), overwrite=True)
    assert card.read_text().endswith("Mine.\n")


class FakeHub:
    """Stands for the Hub: lists a folder's files, and copies those that match."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / COMMIT
        self.fetched: list[str] = []

    def model_info(self, model: str, **_: Any) -> SimpleNamespace:
        names = [f.relative_to(self.repository).as_posix() for f in self.repository.rglob("*.*")]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names], sha=COMMIT)

    def snapshot_download(self, model: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert revision == COMMIT
        for name in allow_patterns:
            if (self.repository / name).is_file():
                (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.repository / name, self.snapshot / name)
                self.fetched.append(name)
        return str(self.snapshot)


def test_only_the_chosen_variant_of_the_hub_is_downloaded(
    lay_out: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out("q4", "fp16")
    hub = FakeHub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    found = find_source("onnx-community/LFM2-Tiny-ONNX", "q4", None, ignore_progress)
    assert found.origin == Origin("hub", "onnx-community/LFM2-Tiny-ONNX", COMMIT)
    assert found.file == hub.snapshot / "onnx" / "model_q4.onnx"
    assert sorted(hub.fetched) == ["config.json", "generation_config.json", "onnx/model_q4.onnx"]


def test_graph_file_in_onnx_finds_the_config_above(lay_out: Callable[..., Path]) -> None:
    folder = lay_out("q4", "fp16")
    found = find_source(str(folder / "onnx" / "model_q4.onnx"), None, None, ignore_progress)
    assert found.name == "onnx/model_q4.onnx"
    assert found.find_beside("config.json") == folder / "config.json"


def test_target_that_the_kind_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="runs for target cpu, not webgpu"):
        import_model(GENAI_14, tmp_path / "b", target="webgpu", against=str(CHECKPOINT))


def test_config_of_another_architecture_is_refused_before_the_graph(
    lay_out: Callable[..., Path], tmp_path: Path
) -> None:
    folder = lay_out("q4")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedModelError, match="llama"):
        import_model(folder, tmp_path / "b")


def test_bundle_in_the_way_is_kept(tmp_path: Path) -> None:
    import_model(GENAI_14, tmp_path / "b", against=str(CHECKPOINT))
    with pytest.raises(BundleError, match="--overwrite"):
        import_model(GENAI_14, tmp_path / "b", against=str(CHECKPOINT))
    with pytest.raises(SourceError, match="is a bundle already"):
        import_model(tmp_path / "b", tmp_path / "c")


def test_gguf_is_handed_on_with_its_options_and_takes_none_of_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.importing import run

    file = tmp_path / "LFM2-Q4_0.gguf"
    file.write_bytes(b"GGUF")
    seen: dict[str, Any] = {}

    def convert(*args: Any, **options: Any) -> str:
        seen.update(options, args=args)
        return "bundle"

    monkeypatch.setattr(run, "GGUF_IMPORTER", SimpleNamespace(load=lambda: convert))
    io = ["transformersjs"]
    assert import_model(file, tmp_path / "b", target="npu", io=io) == "bundle"
    assert seen["args"] == (str(file), tmp_path / "b")
    assert (seen["target"], seen["overwrite"], seen["io"]) == ("npu", False, io)
    with pytest.raises(
        SourceError, match=r"--context is for folders and graphs.*lfm2-deploy export"
    ):
        import_model(file, tmp_path / "b", context_length=64)
    with pytest.raises(SourceError, match="--variant is for folders"):
        import_model(file, tmp_path / "b", variant="Q4_0")


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "onnx", "tool": "", "file": "x", "traits": ["odd"]},
        {"kind": "onnx", "tool": 1, "file": "x", "traits": []},
        {"kind": "onnx", "tool": "", "file": "x", "traits": "grows"},
    ],
)
def test_record_of_another_form_is_not_believed(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="imported has"):
        parse_imported(raw)
