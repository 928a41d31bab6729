"""The small JSON files of a bundle: what the checkpoint says, and what readers miss in it.

Enters: a checkpoint's own files. Leaves: the same with what other programs look for and cannot do
without. Nothing that the checkpoint says is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporters.options import ExportOptions
from exporters.readers.reader import TRANSFORMERSJS, Reader
from lfm2_deploy.bundle import GENERATION
from lfm2_deploy.chat import TEMPLATE_FILE
from lfm2_deploy.config import MOE, Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import CONFIG
from lfm2_deploy.recommended import complete_generation_config

TOKENIZER_CONFIG = "tokenizer_config.json"
# What transformers.js calls our precisions.
_DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}


def complete_side_files(
    checkpoint: Checkpoint, options: ExportOptions
) -> dict[str, dict[str, Any]]:
    """File name -> content, of those that are written and not copied.

    Raises:
        ExportError: a file of the checkpoint is not readable JSON.
    """
    readers = {reader.name: reader for reader in options.readers}
    files = {
        CONFIG: complete_config(checkpoint.raw_config, checkpoint.config),
        GENERATION: complete_defaults(checkpoint),
    }
    if TRANSFORMERSJS in readers:
        files[CONFIG] |= _describe_for_js(readers[TRANSFORMERSJS], options)
        files[TOKENIZER_CONFIG] = _complete_tokenizer(checkpoint)
    return {name: content for name, content in files.items() if content}


def complete_config(raw: Mapping[str, Any], config: Lfm2Config) -> dict[str, Any]:
    """config.json with what its dialect may leave out and others ask for.

    transformers.js reads `layer_types` and knows no `full_attn_idxs`; transformers chooses the
    class by `architectures`.
    """
    name = "Lfm2MoeForCausalLM" if config.model_type == MOE else "Lfm2ForCausalLM"
    missing = {
        "architectures": [name],
        "layer_types": list(config.layer_types),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return {**raw, **{key: value for key, value in missing.items() if raw.get(key) is None}}


def _describe_for_js(reader: Reader, options: ExportOptions) -> dict[str, Any]:
    file = reader.graph(options.precision).rpartition("/")[2]
    described = {
        "dtype": _DTYPES[options.precision],
        "use_external_data_format": {file: 1},
    }
    return {"transformers.js_config": described}


def _complete_tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer_config.json with the chat template: transformers.js 4.3.2 reads no .jinja file."""
    found = _read(checkpoint, TOKENIZER_CONFIG)
    template = checkpoint.side_files.get(TEMPLATE_FILE)
    if template is None or "chat_template" in found:
        return found
    return {**found, "chat_template": template.read_text(encoding="utf-8")}


def complete_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Sampling settings: the checkpoint's, and its model card's where it has none."""
    found = read_defaults(checkpoint)
    # Only a Hub repository's name says for sure which model card is meant.
    if checkpoint.origin.kind != "hub":
        return found
    return complete_generation_config(checkpoint.origin.name, found)


def read_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's own generation_config.json; empty where it has none."""
    return _read(checkpoint, GENERATION)


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    file = checkpoint.side_files.get(name)
    if file is None:
        return {}
    return read_json_object(file, ExportError, "mend or remove it, and export again")
