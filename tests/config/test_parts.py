"""Vision, audio and embedding models: refused by name, and the text part taken as it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lfm2_deploy.config import parse_config, parse_text_part
from lfm2_deploy.errors import ConfigError, UnsupportedModelError

from .dialects import MOE, NEW, OLD, Raw, without

# As LFM2-VL's and LFM2-Audio's configs have been written.
WHOLES: Mapping[str, Raw] = {
    "vision": {
        "model_type": "lfm2_vl",
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "image_token_id": 396,
        "text_config": NEW,
    },
    "moe vision": {"model_type": "lfm2_moe_vl", "text_config": MOE},
    "vision by its class": {"architectures": ["Lfm2VlModel"], "text_config": NEW},
    "audio": {"model_type": "lfm2_audio", "lfm": NEW},
    "audio, newer": {"model_type": "lfm_audio", "lfm": NEW},
    "audio by its class": {"architectures": ["Lfm2AudioForConditionalGeneration"], "lfm": NEW},
    "audio by its part": {"codebooks": 8, "depthformer": {}, "lfm": NEW},
}


def refuse(raw: Mapping[str, Any], *, part: bool) -> tuple[str, type[ConfigError]]:
    """The one line with which a config is refused, whole or as a part, and the error's type."""
    with pytest.raises(ConfigError) as caught:
        (parse_text_part if part else parse_config)(raw)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message, type(caught.value)


@pytest.mark.parametrize("name", WHOLES)
def test_whole_model_is_refused_by_kind_and_with_the_way_out(name: str) -> None:
    message, kind = refuse(WHOLES[name], part=False)
    assert kind is UnsupportedModelError
    assert ("audio model" if "audio" in name else "vision-language model") in message
    assert "--part text" in message
    assert "--inputs-embeds" in message


@pytest.mark.parametrize("name", WHOLES)
def test_text_part_is_what_the_text_model_would_be(name: str) -> None:
    raw, config = parse_text_part(WHOLES[name])
    expected = parse_config(MOE if "moe" in name else NEW)
    assert parse_config(raw) == expected
    assert (config.layer_types, config.moe) == (expected.layer_types, expected.moe)


@pytest.mark.parametrize("text", [OLD, NEW, MOE])
def test_text_part_of_any_dialect_is_read(text: Raw) -> None:
    _, config = parse_text_part({"model_type": "lfm2_vl", "text_config": text})
    assert config == parse_config(text)


def test_whole_models_keys_are_not_taken_for_the_parts() -> None:
    whole = {**WHOLES["vision"], "vocab_size": 5, "hidden_size": 8, "rope_theta": 2.0}
    _, config = parse_text_part(whole)
    assert config == parse_config(NEW)


def test_token_that_only_the_whole_model_names_is_taken_and_told() -> None:
    text = without(NEW, "eos_token_id")
    raw, config = parse_text_part({**WHOLES["vision"], "text_config": text, "eos_token_id": 3})
    assert config.eos_token_ids == (3,)
    assert raw["eos_token_id"] == 3
    assert any("eos_token_id = 3" in note and "whole" in note for note in config.assumptions)


@pytest.mark.parametrize("key", ["tie_embedding", "tie_word_embeddings"])
@pytest.mark.parametrize("tied", [True, False])
def test_tie_is_the_whole_models_to_say(key: str, tied: bool) -> None:
    text = {**NEW, "tie_word_embeddings": not tied}
    _, config = parse_text_part({**WHOLES["vision"], "text_config": text, key: tied})
    assert config.tie_word_embeddings is tied
    assert any(f"tie_word_embeddings = {str(tied).lower()}" in a for a in config.assumptions)


def test_tie_that_only_the_part_names_is_the_parts() -> None:
    text = {**NEW, "tie_word_embeddings": False}
    _, config = parse_text_part({**WHOLES["vision"], "text_config": text})
    assert not config.tie_word_embeddings


def test_whole_model_that_contradicts_itself_about_the_tie_is_refused() -> None:
    raw = {**WHOLES["vision"], "tie_embedding": True, "tie_word_embeddings": False}
    message, _ = refuse(raw, part=True)
    assert "tie_embedding" in message


def test_text_head_of_an_audio_model_is_its_embedding_whatever_the_part_says() -> None:
    text = {**without(NEW, "tie_word_embeddings"), "tie_embedding": False}
    raw, config = parse_text_part({**WHOLES["audio"], "lfm": text})
    assert config.tie_word_embeddings
    assert "tie_embedding" not in raw


def test_audio_part_without_a_model_type_is_a_dense_model_and_says_so() -> None:
    raw, config = parse_text_part({**WHOLES["audio"], "lfm": without(NEW, "model_type")})
    assert raw["model_type"] == "lfm2"
    assert any("model_type" in note for note in config.assumptions)


def test_quantized_whole_model_is_refused() -> None:
    message, _ = refuse({**WHOLES["vision"], "quantization_config": {"bits": 4}}, part=True)
    assert "quantization_config" in message


@pytest.mark.parametrize("part", [{}, {"text_config": None}, {"text_config": "lfm2"}])
def test_whole_model_without_text_part_is_refused_by_key(part: Raw) -> None:
    message, _ = refuse({"model_type": "lfm2_vl", **part}, part=True)
    assert "'lfm2_vl'" in message
    assert "'text_config'" in message


@pytest.mark.parametrize(
    "other",
    [{"model_type": "llama"}, {"model_type": "lfm3"}, {"architectures": ["Lfm3ForCausalLM"]}],
)
def test_whole_model_around_another_text_model_is_refused_by_name(other: Raw) -> None:
    raw = {"model_type": "lfm2_vl", "text_config": {**NEW, **other}}
    message, kind = refuse(raw, part=True)
    assert kind is UnsupportedModelError
    assert "'lfm2_vl'" in message


@pytest.mark.parametrize("raw", [NEW, MOE])
def test_part_of_a_text_model_is_refused(raw: Raw) -> None:
    assert "leave --part out" in refuse(raw, part=True)[0]


def test_part_of_another_family_is_refused_as_that() -> None:
    assert "'llama'" in refuse({"model_type": "llama"}, part=True)[0]


@pytest.mark.parametrize(
    "raw",
    [
        {**NEW, "architectures": ["Lfm2BidirectionalModel"]},
        {**NEW, "architectures": ["Lfm2Model"]},
        {**NEW, "architectures": ["Lfm2BidirectionalForMaskedLM"]},
        {**NEW, "architectures": [], "model_type": "lfm2_bidirectional"},
    ],
)
def test_model_that_gives_embeddings_is_refused_by_name(raw: Raw) -> None:
    message, kind = refuse(raw, part=False)
    assert kind is UnsupportedModelError
    assert "embeddings" in message
    assert "sentence-transformers" in message
