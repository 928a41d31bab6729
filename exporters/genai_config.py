"""genai_config.json: how onnxruntime-genai finds its way in a bundle.

Enters: a model's config, its states as a graph names them, its sampling defaults. Leaves: the
object to write. Knows nothing of how graphs are made.

Read by genai 0.14 and later, which refuse a key that they do not know: every key written here is
one that genai 0.18 reads, and 0.14, too, where it is meant (`--io genai-legacy`). Tokenizer
and chat template are found beside the file (tokenizer.json, tokenizer_config.json,
chat_template.jinja), and `model.tokenizer_dir`, which 0.14 lacks, need not say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters.readers.reader import READERS, Reader, StateNames
from exporters.stitch import ATTENTION_MASK, INPUT_IDS, LOGITS
from exporters.targets.target import Written
from lfm2_deploy.answers.marks import CALL_END, CALL_START
from lfm2_deploy.bundle import GENERATION
from lfm2_deploy.config import DENSE, Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import GENAI, GENAI_LEGACY
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.tokenizer import Tokenizer

GENAI_CONFIG = "genai_config.json"
# transformers', where generation_config.json has none. genai knows no min_p (0.18), which models
# that recommend one would else lack without anything in its place.
_TOP_K = 50


def write_genai_config(written: Written) -> None:
    """Write the file beside a bundle's graph, where that takes token ids.

    onnxruntime-genai 0.18 runs a decoder that takes embeddings only as a stage of "lfm2_vl" or
    "lfm2_audio", with a vision or audio graph and one that puts `image_features` among embeddings.
    """
    part, *others = written.parts
    if others:
        return
    draft = written.drafts[part.name]
    reader = next(reader for reader in written.readers if reader.genai_config)
    content = make_genai_config(
        draft.config,
        list_states(draft.config),
        reader.graph(written.precision),
        draft.context_length,
        reader,
        defaults=read_defaults(written.folder),
        tool_calls=find_tool_calls(written.folder),
    )
    text = json.dumps(content, indent=2) + "\n"
    (written.folder / GENAI_CONFIG).write_text(text, encoding="utf-8")


def read_defaults(folder: Path) -> GenerationOptions:
    """Sampling defaults of a bundle's generation_config.json; greedy where it has none."""
    file = folder / GENERATION
    if not file.is_file():
        return GenerationOptions()
    raw = read_json_object(file, ExportError, "mend or remove it, and export again")
    return GenerationOptions.from_generation_config(raw)


def find_tool_calls(folder: Path) -> tuple[int, int] | None:
    """Ids of the tokens around a tool call; None where the tokenizer has none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_folder(folder)
    start, end = map(tokenizer.token_id, (CALL_START, CALL_END))
    return None if start is None or end is None else (start, end)


def make_genai_config(
    config: Lfm2Config,
    states: Sequence[StateSpec],
    graph: str,
    context_length: int,
    reader: Reader = READERS[GENAI],
    *,
    defaults: GenerationOptions | None = None,
    tool_calls: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The object to write as genai_config.json.

    Args:
        config: the model.
        states: its states.
        graph: the ONNX file's path in the folder, without "..", which genai refuses.
        context_length: most tokens a row may hold.
        reader: which generation of onnxruntime-genai is meant, and what it calls states.
        defaults: how the model's maker samples; None for greedily.
        tool_calls: ids of the tokens that begin and end a tool call; None where there are none.
    """
    names = [reader.name_state(state, config) for state in states]
    legacy = reader.name == GENAI_LEGACY
    defaults = defaults or GenerationOptions()
    ends = dict.fromkeys((*config.eos_token_ids, *defaults.eos_token_ids))
    calls: Mapping[str, int] = {}
    if tool_calls is not None and not legacy:
        calls = dict(zip(("bot_token_id", "eot_token_id"), tool_calls, strict=True))
    return {
        "model": {
            # Before 0.17 there is no "lfm2_moe", and "lfm2" runs a model of either type.
            "type": DENSE if legacy else config.model_type,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(ends),
            "pad_token_id": config.pad_token_id,
            **calls,
            "vocab_size": config.vocab_size,
            "context_length": context_length,
            "decoder": _describe_decoder(config, states, names, graph),
        },
        "search": _describe_search(config, defaults, context_length),
    }


def _describe_search(
    config: Lfm2Config, defaults: GenerationOptions, context_length: int
) -> dict[str, Any]:
    sampling = defaults.sampling
    samples = sampling.temperature > 0
    return {
        "do_sample": samples,
        "temperature": sampling.temperature if samples else 1.0,
        "top_k": min(sampling.top_k or _TOP_K, config.vocab_size),
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "random_seed": -1,
        "min_length": 0,
        "max_length": context_length,
        "num_beams": 1,
        "num_return_sequences": 1,
        "early_stopping": True,
        "length_penalty": 1.0,
        "diversity_penalty": 0.0,
        "no_repeat_ngram_size": 0,
        # One buffer for past and present, so that no step copies keys and values; before 0.15 it
        # changes nothing for LFM2.
        "past_present_share_buffer": True,
    }


def _describe_decoder(
    config: Lfm2Config, states: Sequence[StateSpec], names: Sequence[StateNames], graph: str
) -> dict[str, Any]:
    # The first state of each kind; all names are written out, since defaults are genai's choice.
    pairs = [*zip(states, names, strict=True)]
    kinds = {state.kind: (name, state.layer) for state, name in reversed(pairs)}
    past = {f"past_{k}_names": _pattern(n.input, layer) for k, (n, layer) in kinds.items()}
    present = {f"present_{k}_names": _pattern(n.output, layer) for k, (n, layer) in kinds.items()}
    width = next((name.width for name in names if name.width), config.conv_state_width)
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "layer_types": list(config.layer_types),
        "conv_cache_size": width,
        "inputs": {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK, **past},
        "outputs": {"logits": LOGITS, **present},
    }


def _pattern(name: str, layer: int) -> str:
    """The name with `%d` for the layer's number, which stands between dots or at the end."""
    parts = name.split(".")
    place = parts.index(str(layer))
    return ".".join([*parts[:place], "%d", *parts[place + 1 :]])
