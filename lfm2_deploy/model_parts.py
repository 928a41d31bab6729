"""Vision and audio members of the family: how they are told, and their text part.

Enters: the JSON object of a config. Leaves: which kind of model it is, and of its text part a
config such as a text model has, with a note for all that does not stand in the part itself.
Knows nothing of tensors; `checkpoint/text_tensors.py` does.

Sources: transformers 5.24, `models/lfm2_vl`; liquid-audio, `model/lfm2_audio.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.errors import ConfigError, UnknownOptionError, UnsupportedModelError

# What users write after --part. Vision towers and audio encoders are nobody's yet.
TEXT = "text"
PARTS = (TEXT,)

VISION, AUDIO = "vision-language", "audio"
_KINDS = {
    VISION: re.compile(r"lfm2(\.5)?_?(moe_?)?vl", re.IGNORECASE),
    # LFM2-Audio has been "lfm2_audio" and "lfm_audio", and comes without any model_type.
    AUDIO: re.compile(r"lfm2?(\.5)?_?audio", re.IGNORECASE),
}
_TEXT_KEYS = {VISION: ("text_config", "lfm"), AUDIO: ("lfm", "text_config")}
_TIES = ("tie_embedding", "tie_word_embeddings")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# LFM2-ColBERT and LFM2.5's embedding models and encoders are of model_type "lfm2", too.
_WRITES_TEXT = "forcausallm"
_BIDIRECTIONAL = re.compile(r"lfm2.*bidirectional", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Whole:
    """A model of which text is one part.

    Args:
        kind: `VISION` or `AUDIO`.
        name: what its config calls it.
        key: where the config of its text part lies.
    """

    kind: str
    name: str
    key: str


def check_part(part: str | None) -> str | None:
    """The part, as it was asked for.

    Raises:
        UnknownOptionError: there is no such part.
    """
    if part is not None and part not in PARTS:
        raise UnknownOptionError(f"there is no part {part!r}: expected {', '.join(PARTS)}")
    return part


def find_whole(raw: Mapping[str, Any]) -> Whole | None:
    """What a config is of, where that is a vision or audio model; None for all others."""
    for name in (raw.get("model_type"), *list_architectures(raw)):
        for kind, pattern in _KINDS.items():
            if isinstance(name, str) and pattern.match(name):
                return Whole(kind, name, _choose_key(kind, raw))
    if raw.get("model_type") is None and isinstance(raw.get("lfm"), dict):
        return Whole(AUDIO, "lfm2_audio", "lfm")
    return None


def _choose_key(kind: str, raw: Mapping[str, Any]) -> str:
    usual = _TEXT_KEYS[kind]
    return next((key for key in usual if isinstance(raw.get(key), dict)), usual[0])


def list_architectures(raw: Mapping[str, Any]) -> list[str]:
    """The names of classes that a config gives.

    Raises:
        ConfigError: they are no list.
    """
    names = raw.get("architectures") or []
    if not isinstance(names, list | tuple):
        raise ConfigError(f"config.json: architectures is {names!r}, expected a list")
    return [str(name) for name in names]


def explain_whole(whole: Whole, model: str = "") -> str:
    """Why such a model is refused, and the way out.

    Args:
        whole: what it is.
        model: what the user calls it; "" where that is not known.
    """
    article, brings = ("a", "images") if whole.kind == VISION else ("an", "sounds")
    is_one = f"{model} is" if model else "config.json is of"
    return (
        f"{is_one} {article} {whole.kind} model ('{whole.name}'), of which only the text part can "
        f"be exported: `lfm2-deploy export {model or 'MODEL'} --part {TEXT}`, and --inputs-embeds "
        f"for a program that brings embeddings of {brings} itself"
    )


def refuse_encoder(raw: Mapping[str, Any]) -> None:
    """Refuse models that read text and write none.

    Raises:
        UnsupportedModelError: the config is of one.
    """
    names = [name for name in list_architectures(raw) if name.lower().startswith("lfm2")]
    found = [name for name in names if not name.lower().endswith(_WRITES_TEXT)]
    model_type = str(raw.get("model_type"))
    if _BIDIRECTIONAL.match(model_type):
        found.append(model_type)
    if found:
        raise UnsupportedModelError(
            f"config.json is of '{found[0]}', which gives embeddings and writes no text, as "
            "LFM2-ColBERT and LFM2.5-Embedding do: run it with sentence-transformers or PyLate, or "
            "take a text model such as LiquidAI/LFM2-350M"
        )


def take_text_part(raw: Mapping[str, Any], whole: Whole) -> tuple[dict[str, Any], list[str]]:
    """The text part's config as a text model's, and what of it does not stand there.

    Args:
        raw: the whole model's config.
        whole: what it is.

    Raises:
        ConfigError: there is no text part.
        UnsupportedModelError: the whole model's weights are quantized.
    """
    part = raw.get(whole.key)
    if not isinstance(part, dict):
        raise ConfigError(f"config.json of a '{whole.name}' model has no object '{whole.key}'")
    if raw.get("quantization_config") is not None:
        raise UnsupportedModelError(
            "config.json: quantization_config is set for the whole model; only weights that are "
            "not quantized can be exported"
        )
    text, notes = dict(part), []
    if text.get("model_type") is None:
        text["model_type"] = "lfm2_moe" if text.get("num_experts") else "lfm2"
        notes.append(f"model_type = {text['model_type']!r} (absent from '{whole.key}')")
    for key in _TOKENS:
        if text.get(key) is None and raw.get(key) is not None:
            text[key] = raw[key]
            notes.append(f"{key} = {raw[key]} (the whole model's; absent from '{whole.key}')")
    text, tie_note = _settle_tie(raw, text, whole)
    notes += tie_note
    return text, notes


def _settle_tie(
    raw: Mapping[str, Any], text: dict[str, Any], whole: Whole
) -> tuple[dict[str, Any], list[str]]:
    """The part's config with whether head and embedding are one, and a note where that is new."""
    if whole.kind == AUDIO:
        # LFM2AudioModel multiplies by `self.lfm.embed_tokens.weight` whatever its config says.
        given, reason = [True], "an LFM2-Audio model's text head is its embedding table"
    else:
        # transformers ties by the whole model's config, and never reads the part's.
        given = [raw[key] for key in _TIES if key in raw]
        reason = f"the whole model's, which decides; '{whole.key}' says otherwise or nothing"
    if not given:
        return text, []
    tied = given[0]
    if any(value is not tied for value in given) or not isinstance(tied, bool):
        raise ConfigError(
            "config.json: tie_embedding and tie_word_embeddings are "
            f"{' and '.join(map(repr, given))}, expected true or false, and the same"
        )
    said = [text[key] for key in _TIES if key in text]
    others = {key: value for key, value in text.items() if key not in _TIES}
    same = bool(said) and all(value is tied for value in said)
    notes = [] if same else [f"tie_word_embeddings = {str(tied).lower()} ({reason})"]
    return {**others, "tie_word_embeddings": tied}, notes
