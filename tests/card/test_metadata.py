"""The YAML of a card: what PyYAML and huggingface_hub read, what stays of what people write."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lfm2_deploy.bundle import CARD
from lfm2_deploy.card.metadata import describe, read_list, read_value, split
from lfm2_deploy.card.write import write_card
from lfm2_deploy.contracts import Origin
from lfm2_deploy.manifest import ReaderRecord

from .conftest import Make

LFM = Origin("hub", "LiquidAI/LFM2-350M", "0123456789abcdef")


def read(bundle: Any) -> dict[str, Any]:
    """The metadata as huggingface_hub reads it."""
    return ModelCard((bundle.path / CARD).read_text()).data.to_dict()


def test_model_of_liquid_has_its_license_and_base(make: Make) -> None:
    data = read(make(origin=LFM, model=LFM.name))
    assert data["license"] == "other"
    assert data["license_name"] == "lfm1.0"
    assert data["license_link"] == "https://huggingface.co/LiquidAI/LFM2-350M/blob/main/LICENSE"
    assert data["base_model"] == "LiquidAI/LFM2-350M"
    assert data["base_model_relation"] == "quantized"
    assert data["pipeline_tag"] == "text-generation"


def test_gguf_file_of_liquid_has_its_license_and_base(make: Make) -> None:
    name = "LiquidAI/LFM2-350M-GGUF/LFM2-350M-Q4_0.gguf"
    data = read(make(origin=Origin("hub", name, "0123456789abcdef"), model=name))
    assert (data["license"], data["base_model"]) == ("other", "LiquidAI/LFM2-350M-GGUF")


@pytest.mark.parametrize(
    "origin", [Origin("folder", "mine"), Origin("synthetic", "x", "0"), Origin("hub", "a/b/../c")]
)
def test_unknown_license_and_base_are_left_out_and_said_so(make: Make, origin: Origin) -> None:
    bundle = make(origin=origin)
    assert read(bundle).keys().isdisjoint({"license", "license_name", "base_model"})
    assert "# license: not known" in (bundle.path / CARD).read_text()


def test_license_of_somebody_elses_model_is_not_invented(make: Make) -> None:
    bundle = make(origin=Origin("hub", "somebody/LFM2-tuned"))
    assert "license" not in read(bundle)
    assert read(bundle)["base_model"] == "somebody/LFM2-tuned"
    assert "https://huggingface.co/somebody/LFM2-tuned" in (bundle.path / CARD).read_text()


def test_tags_follow_the_files(make: Make) -> None:
    plain = read(make(precision="fp32"))
    assert plain["tags"] == ["lfm2", "onnx", "fp32", "lfm2-deploy"]
    assert "base_model_relation" not in plain
    js = make(
        "js",
        {"onnx/model_q4.onnx": b"graph", "genai_config.json": b"{}"},
        readers=(ReaderRecord("transformersjs", "onnx/model_q4.onnx"),),
    )
    assert {"onnxruntime-genai", "transformers.js"} <= set(read(js)["tags"])
    assert read(js)["library_name"] == "transformers.js"


def test_what_somebody_wrote_stays_and_the_rest_is_renewed(make: Make) -> None:
    bundle = make()
    card = bundle.path / CARD
    text = card.read_text()
    text = text.replace("# license:", "license: apache-2.0\nlanguage:\n- en\n- de\n# license:", 1)
    text = text.replace("- onnx\n", "- onnx\n- whales\n", 1)
    text = text.replace("pipeline_tag: text-generation\n", "")
    card.write_text(text)
    write_card(bundle)
    data = read(bundle)
    assert (data["license"], data["language"]) == ("apache-2.0", ["en", "de"])
    assert "whales" in data["tags"]
    assert data["pipeline_tag"] == "text-generation"
    assert "license: not known" not in card.read_text()
    before = card.read_text()
    write_card(bundle)
    assert card.read_text() == before


def test_other_license_by_hand_does_not_keep_the_first_ones_name(make: Make) -> None:
    bundle = make(origin=LFM)
    card = bundle.path / CARD
    lines = card.read_text().split("\n")
    kept = [line for line in lines if not line.startswith("license_")]
    card.write_text("\n".join(kept).replace("license: other", "license: mit"))
    write_card(bundle)
    assert read(bundle)["license"] == "mit"
    assert "license_name" not in read(bundle)


@pytest.mark.parametrize("name", ["a: b", "x # y", "- z", "true", '"q', "a\nb: c", "ü", "{}"])
def test_any_name_gives_yaml_that_says_it(make: Make, name: str) -> None:
    bundle = make(precision=name, origin=Origin("folder", name), model=name)
    tags = yaml.safe_load(ModelCard((bundle.path / CARD).read_text()).content.split("---")[1])
    assert name in tags["tags"]


def test_metadata_of_others_dialects_is_read() -> None:
    items, rest = split("---\r\ntags: [a, 'b']\nlicense: \"mit\"\n---\nHello")
    assert not items or rest
    items, rest = split("---\ntags: [a, 'b']\nlicense: \"mit\"\nmodel-index:\n- name: x\n---\nHi")
    assert read_list(items["tags"]) == ["a", "b"]
    assert read_value(items, "license") == "mit"
    assert items["model-index"] == "model-index:\n- name: x"
    assert rest == "Hi"
    assert split("no metadata\n---\n") == ({}, "no metadata\n---\n")


def test_what_is_described_is_what_is_split_again(make: Make) -> None:
    for number, origin in enumerate((LFM, Origin("folder", "mine"))):
        bundle = make(f"made-{number}", origin=origin)
        assert split((bundle.path / CARD).read_text())[0] == describe(bundle)
