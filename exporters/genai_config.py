"""genai_config.json: how onnxruntime-genai 0.17 and later find their way in a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from exporters.readers.reader import GENAI, GENAI_LEGACY, READERS, Reader, StateNames
from exporters.stitch import ATTENTION_MASK, INPUT_IDS, LOGITS
from exporters.targets.target import Written
from lfm2_deploy.config import DENSE, Lfm2Config
from lfm2_deploy.states import StateSpec, list_states


def write_genai_config(written: Written) -> None:
    """Write the file beside a bundle's graph, where that takes token ids.

    onnxruntime-genai 0.18 runs a decoder that takes embeddings only as a stage of "lfm2_vl" or
    "lfm2_audio", with a vision or audio graph and one that puts `image_features` among embeddings.
    """
    part, *others = written.parts
    if others:
        return
    draft = written.drafts[part.name]
    states = list_states(draft.config)
    reader = next(reader for reader in written.readers if reader.genai_config)
    graph = reader.graph(written.precision)
    content = make_genai_config(draft.config, states, graph, draft.context_length, reader)
    text = json.dumps(content, indent=2) + "\n"
    (written.folder / "genai_config.json").write_text(text, encoding="utf-8")


def make_genai_config(
    config: Lfm2Config,
    states: Sequence[StateSpec],
    graph: str,
    context_length: int,
    reader: Reader = READERS[GENAI],
) -> dict[str, Any]:
    """The object to write as genai_config.json.

    Args:
        config: the model.
        states: its states.
        graph: the ONNX file's name.
        context_length: most tokens a row may hold.
        reader: which generation of onnxruntime-genai is meant, and what it calls states.
    """
    names = [reader.name_state(state, config) for state in states]
    return {
        "model": {
            # 0.14 knows no "lfm2_moe", and does the same for a model of either type.
            "type": DENSE if reader.name == GENAI_LEGACY else config.model_type,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": config.pad_token_id,
            "vocab_size": config.vocab_size,
            "context_length": context_length,
            "decoder": _describe_decoder(config, states, names, graph),
        },
        "search": {
            "do_sample": False,
            "max_length": context_length,
            "past_present_share_buffer": True,
        },
    }


def _describe_decoder(
    config: Lfm2Config, states: Sequence[StateSpec], names: Sequence[StateNames], graph: str
) -> dict[str, Any]:
    # The first state of each kind; the conv names' default changed between versions, so
    # all are written out.
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
