"""GGUF metadata -> the tokenizer, chat template and settings of a model's folder.

Enters: a file's header. Leaves: the texts of files that a Hugging Face folder has. The metadata
hold tokens, merges and the name of the rule that cuts a text in words; the rest is what LFM2's
tokenizers have in common.

Source: llama.cpp, conversion/base.py (`get_vocab_base`) and src/llama-vocab.cpp (gguf 0.19).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lfm2_deploy.checkpoint.gguf_file import GgufFile
from lfm2_deploy.errors import CheckpointError

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
# LFM2's rule, which is Llama 3's. Source: tokenizer.json of LFM2-350M.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LIKE_LFM2 = ("lfm2", "llama-bpe", "llama3", "llama-v3")
_LIKE_GPT2 = ("gpt-2", "gpt2")
# general.sampling.* -> names of generation_config.json.
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_ROLES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Tokens by id, with the format's numbers for their kinds."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[tuple[str, str]]


def list_side_files(file: GgufFile) -> dict[str, str]:
    """Name -> text of the small files that the metadata make.

    Args:
        file: a header; one without a tokenizer gives no tokenizer.

    Raises:
        CheckpointError: the tokenizer is of another kind than LFM2's, or damaged.
    """
    texts: dict[str, str] = {}
    metadata = file.metadata
    if "tokenizer.ggml.tokens" in metadata:
        try:
            texts["tokenizer.json"] = _build_tokenizer(metadata).to_str(pretty=False)
            texts["tokenizer_config.json"] = _to_json(_describe_tokens(metadata))
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {error}") from error
        # The library raises nothing narrower where merges name no tokens.
        except Exception as error:
            raise CheckpointError(
                f"{file.path} holds a damaged tokenizer ({error}); download it again"
            ) from error
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        texts["chat_template.jinja"] = template
    sampling = _list_sampling(metadata)
    if sampling:
        texts["generation_config.json"] = _to_json(sampling)
    return texts


def _to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    vocabulary, words = _read_vocabulary(metadata), _choose_words(metadata)
    ids: dict[str, int] = {}
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        # The model's vocabulary is wider than the tokenizer's: "[PAD64400]" is no token.
        if kind != _UNUSED and ids.setdefault(token, number) != number:
            raise CheckpointError(
                f"tokens {ids[token]} and {number} are both {token!r}; download it again"
            )
    model = models.BPE(vocab=ids, merges=list(vocabulary.merges))
    if _keeps_words_whole(model, ids, vocabulary, words):
        model = models.BPE(vocab=ids, merges=list(vocabulary.merges), ignore_merges=True)
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = words
    built.decoder = decoders.ByteLevel()
    _add_tokens(built, vocabulary)
    start = metadata.get("tokenizer.ggml.bos_token_id")
    # llama.cpp adds the start where no key says otherwise, for rules like LFM2's.
    if metadata.get("tokenizer.ggml.add_bos_token", True) and isinstance(start, int):
        built.post_processor = _put_in_front(vocabulary.tokens[start], start)
    return built


def _read_vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"its tokenizer is of kind {kind!r}, expected 'gpt2' (byte-level BPE), as every LFM2 "
            "model has"
        )
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise CheckpointError("its tokenizer has no list of tokens or of merges")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise CheckpointError("its tokenizer does not tell the kind of each token")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong is not None:
        raise CheckpointError(f"its tokenizer merges {len(wrong)} parts, expected 2")
    return _Vocabulary(tokens, kinds.tolist(), [(pair[0], pair[1]) for pair in pairs])


def _choose_words(metadata: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    """What cuts a text in words, in the alphabet of bytes."""
    rule = metadata.get("tokenizer.ggml.pre")
    if rule in _LIKE_GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule not in _LIKE_LFM2:
        raise CheckpointError(
            f"its tokenizer cuts words by rule {rule!r}: expected "
            f"{' or '.join(map(repr, (*_LIKE_LFM2, *_LIKE_GPT2)))}; export the original model"
        )
    split = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, level])


def _keeps_words_whole(
    model: models.BPE,
    ids: Mapping[str, int],
    vocabulary: _Vocabulary,
    words: pre_tokenizers.PreTokenizer,
) -> bool:
    """Whether a word that is a token stays one whatever merges say.

    The metadata do not tell. It shows where a token is a whole word and merges do not lead to it:
    it would never be used. LFM2's 64,400 tokens hold no such word.
    """
    decoder = decoders.ByteLevel()
    for token, number in ids.items():
        if vocabulary.kinds[number] in (_CONTROL, _USER_DEFINED):
            continue
        found = model.tokenize(token)
        if len(found) == 1:
            continue
        text = decoder.decode([token])
        if [piece for piece, _ in words.pre_tokenize_str(text)] == [token]:
            return True
    return False


def _add_tokens(built: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    # All of a kind at once: the library prepares its search anew at each call.
    for kind in (_CONTROL, _USER_DEFINED):
        is_special = kind == _CONTROL
        found = [
            tokenizers.AddedToken(token, special=is_special, normalized=not is_special)
            for token, its_kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
            if its_kind == kind
        ]
        (built.add_special_tokens if is_special else built.add_tokens)(found)


def _put_in_front(token: str, number: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, number)]
    )


def _describe_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    roles: dict[str, Any] = {}
    for role, name in _ROLES.items():
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(number, int) and number < len(tokens):
            roles[name] = tokens[number]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _list_sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, float):
            value = float(str(np.float32(value)))
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    return {"do_sample": True, **found} if "temperature" in found else found
