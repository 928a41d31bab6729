"""genai_config.json: how onnxruntime-genai finds its way in a bundle.

Enters: a model's config, its states as a graph names them, its sampling defaults. Leaves: the
object to write. Knows nothing of how graphs are made.

Read by genai 0.14 and later, which refuse a key that they do not know: every key written here is
one that genai 0.18 reads, and those written without `tool_calls` 0.14 reads as well. Tokenizer
and chat template are found beside the file (tokenizer.json, tokenizer_config.json,
chat_template.jinja), and `model.tokenizer_dir`, which 0.14 lacks, need not say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters.stitch import ATTENTION_MASK, INPUT_IDS, LOGITS
from exporters.targets.target import Written
from lfm2_deploy.answers.marks import CALL_END, CALL_START
from lfm2_deploy.bundle import GENERATION
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.states import StateSpec, list_states
from lfm2_deploy.tokenizer import Tokenizer

GENAI_CONFIG = "genai_config.json"
# transformers', where generation_config.json has none. genai knows no min_p (0.18), which models
# that recommend one would else lack without anything in its place.
_TOP_K = 50


def write_genai_config(written: Written) -> None:
    """Write the file beside a bundle's only graph."""
    (part,) = written.parts
    draft = written.drafts[part.name]
    content = make_genai_config(
        draft.config,
        list_states(draft.config),
        part.file,
        draft.context_length,
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
    *,
    defaults: GenerationOptions | None = None,
    tool_calls: tuple[int, int] | None = None,
    model_type: str | None = None,
) -> dict[str, Any]:
    """The object to write as genai_config.json.

    Args:
        config: the model.
        states: its states, as the graph names them.
        graph: the ONNX file's path in the folder, without "..", which genai refuses.
        context_length: most tokens a row may hold.
        defaults: how the model's maker samples; None for greedily.
        tool_calls: ids of the tokens that begin and end a tool call; None where there are none,
            and for genai 0.14, which does not know the keys.
        model_type: None for the model's own. Before genai 0.17, which brought "lfm2_moe", a
            mixture is "lfm2" as well: what tells them apart is in the graph.
    """
    defaults = defaults or GenerationOptions()
    ends = dict.fromkeys((*config.eos_token_ids, *defaults.eos_token_ids))
    calls: Mapping[str, int] = {}
    if tool_calls is not None:
        calls = dict(zip(("bot_token_id", "eot_token_id"), tool_calls, strict=True))
    return {
        "model": {
            "type": model_type or config.model_type,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(ends),
            "pad_token_id": config.pad_token_id,
            **calls,
            "vocab_size": config.vocab_size,
            "context_length": context_length,
            "decoder": _describe_decoder(config, states, graph),
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
    config: Lfm2Config, states: Sequence[StateSpec], graph: str
) -> dict[str, Any]:
    # The first state of each kind; all names are written out, since defaults are genai's choice.
    kinds = {state.kind: state for state in reversed(states)}
    width = kinds["conv"].shape[-1] if "conv" in kinds else config.conv_state_width
    past = {f"past_{kind}_names": _pattern(s.input, s.layer) for kind, s in kinds.items()}
    present = {f"present_{kind}_names": _pattern(s.output, s.layer) for kind, s in kinds.items()}
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
    """The name with %d for the layer's number: "past.3.conv", or "past_conv.3"."""
    return re.sub(rf"\.{layer}(?=\.|$)", ".%d", name, count=1)
