"""`import_model`: somebody else's export becomes a bundle, or is refused in one line.

What the graph computes stays as it is, so comparing the bundle compares the export. Before the
bundle is whole it is loaded and reads a few tokens, in one piece and token by token: what it cannot
do is recorded, and a graph that does not run leaves nothing behind.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_deploy.bundle import Bundle, check_destination, open_bundle, seal
from lfm2_deploy.checkpoint import describe_model
from lfm2_deploy.checkpoint.folder import CONFIG_FILE, SIDE_FILES
from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import Origin, Progress, Runtime, ignore_progress
from lfm2_deploy.entry import PACKAGE
from lfm2_deploy.errors import (
    ConfigError,
    RuntimeUnavailableError,
    SourceError,
    UnsupportedModelError,
)
from lfm2_deploy.imported import LEFT_PADDING, ONE_TOKEN, ImportedRecord
from lfm2_deploy.importing.adopted import Adopted
from lfm2_deploy.importing.source import GGUF, ONNX, Found, find_source
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import SCHEMA_VERSION, GraphRecord, Manifest
from lfm2_deploy.registry import ADOPTERS, GGUF_IMPORTER, find_runtime
from lfm2_deploy.states import list_states
from lfm2_deploy.unfinished import writing_bundle

# As long as LFM2's conversations are; a longer context is asked for.
_USUAL_CONTEXT = 32768
_TARGETS = {ONNX: ("cpu",), "openvino": ("openvino-cpu", "igpu")}
# Tokens that are tried, and how far logits read in pieces may be from those read at once, as a part
# of the largest: 8-bit activations differ by about 1 %, a state that is ignored by all of it.
_TRIED, _TOLERANCE = 6, 0.1


def import_model(
    source: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    target: str | None = None,
    against: str | None = None,
    context_length: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = ignore_progress,
) -> Bundle:
    """Make a bundle of an ONNX or OpenVINO export, or of a GGUF file, that somebody else made.

    Args:
        source: a folder, a .onnx, .xml or .gguf file, or a Hub id such as
            "onnx-community/LFM2-350M-ONNX".
        out: the folder to make.
        variant: which, where there are several, such as "q4", "fp16" or "Q4_0".
        target: where it will run; None for "cpu" or, of an OpenVINO IR, "openvino-cpu". An IR also
            runs on "igpu"; a GGUF file is exported anew, for any target.
        against: the checkpoint it was made from, where the folder has no config.json: a folder or
            a Hub id. `verify` and `compare` find it again if it is on the Hub.
        context_length: most tokens a row may hold; None for what model and graph allow, at most
            32,768. Not for a GGUF file.
        revision: branch, tag or commit of a Hub repository.
        overwrite: replace a bundle that is already at `out`.
        progress: told of each step.

    Returns:
        The bundle. It has no canary, since nothing says what its weights should give.

    Raises:
        Lfm2DeployError: in one line; nothing is left at `out`.
    """
    check_destination(Path(out), overwrite)
    found = find_source(str(source), variant, revision, progress)
    if found.kind == GGUF:
        return _import_gguf(found, Path(out), target or "cpu", overwrite, progress)
    chosen = _choose_target(found, target)
    raw, config, origin = _describe(found, against)
    with writing_bundle(Path(out), overwrite) as folder:
        progress("reading the graph", 0, 0)
        adopted: Adopted = ADOPTERS[found.kind].load()(found.file, folder, config)
        _refuse_npu(found, target, adopted)
        manifest = _describe_bundle(found, adopted, raw, config, origin, chosen, context_length)
        _take_along(found, raw, folder)
        progress("trying it", 0, 0)
        seal(folder, _try(folder, manifest, config), progress)
    return open_bundle(out)


def _import_gguf(
    found: Found, out: Path, target: str, overwrite: bool, progress: Progress
) -> Bundle:
    try:
        convert = GGUF_IMPORTER.load()
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"{found.file} is a GGUF file, and this installation has no {GGUF_IMPORTER.module}: "
            "pip install --upgrade lfm2-deploy"
        ) from error
    bundle: Bundle = convert(found.file, out, target=target, overwrite=overwrite, progress=progress)
    return bundle


def _choose_target(found: Found, asked: str | None) -> str:
    """The target's name; an NPU is refused once the graph was looked at, which says why."""
    choices = _TARGETS[found.kind]
    if asked is None or (asked == "npu" and found.kind != ONNX):
        return choices[0]
    if asked not in choices:
        raise SourceError(
            f"{found.name} is an {found.kind} graph, which runs for target {' or '.join(choices)}, "
            f"not {asked}: export the model itself with `lfm2-deploy export --target {asked}`"
        )
    return asked


def _refuse_npu(found: Found, asked: str | None, adopted: Adopted) -> None:
    if asked != "npu":
        return
    reason = "a graph of any length needs fixed shapes there"
    if LEFT_PADDING in adopted.traits:
        reason = (
            "its conv masks take the mask's first columns (mask[:, :s]), so padding on the left gets "
            "into conv states when a prompt is read in chunks, and answers are wrong"
        )
    raise SourceError(
        f"{found.name} is not to be run on an NPU: {reason}; export the model itself with "
        "`lfm2-deploy export --target npu`"
    )


def _describe(found: Found, against: str | None) -> tuple[dict[str, Any], Lfm2Config, Origin]:
    """config.json as it was found, parsed, and the origin that is recorded."""
    file = found.find_beside(CONFIG_FILE)
    if file is not None:
        raw = read_json_object(file, ConfigError, "download it again")
        return raw, _check_config(raw, file), _choose_origin(found, against)
    if against is None:
        raise SourceError(
            f"{found.folder} has no config.json (onnxruntime-genai's builder writes none): name the "
            "checkpoint it was made from with --against, or put its config.json there"
        )
    from lfm2_deploy.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(against)
    return dict(checkpoint.raw_config), checkpoint.config, checkpoint.origin


def _choose_origin(found: Found, against: str | None) -> Origin:
    return found.origin if against is None else describe_model(against)[1]


def _check_config(raw: dict[str, Any], file: Path) -> Lfm2Config:
    config = parse_config(raw)
    if config.text_part_of is not None:
        raise UnsupportedModelError(
            f"{file} is of a vision or audio model ('{config.text_part_of}'), whose decoder takes "
            "embeddings and is not run here; give a text model's export"
        )
    return config


def _describe_bundle(
    found: Found,
    adopted: Adopted,
    raw: dict[str, Any],
    config: Lfm2Config,
    origin: Origin,
    target: str,
    context_length: int | None,
) -> Manifest:
    from importlib.metadata import version

    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=origin.name,
        origin=origin,
        target=target,
        runtime=adopted.runtime,
        precision=adopted.precision,
        context_length=_choose_context(config, adopted.positions, context_length),
        config=raw,
        states=list_states(config, adopted.state_dtype),
        quantization=adopted.quantization,
        made_with={PACKAGE: version(PACKAGE), **adopted.made_with},
        notes=(*config.assumptions, *adopted.notes),
        files={},
        graphs=(GraphRecord("model", adopted.graph, "target"),),
        imported=ImportedRecord(found.kind, adopted.tool, found.name, adopted.traits),
    )


def _choose_context(config: Lfm2Config, positions: int, asked: int | None) -> int:
    most = min(config.max_position_embeddings, positions or config.max_position_embeddings)
    if asked is None:
        return min(most, _USUAL_CONTEXT)
    if not 1 <= asked <= most:
        whose = "graph's positional tables hold" if positions == most else "model allows"
        raise SourceError(f"--context {asked} is not possible: the {whose} 1 to {most} tokens")
    return asked


def _take_along(found: Found, raw: dict[str, Any], folder: Path) -> None:
    """config.json, tokenizer, chat template and generation defaults."""
    import json

    for name in SIDE_FILES:
        file = found.find_beside(name)
        if file is not None:
            shutil.copyfile(file, folder / name)
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _try(folder: Path, manifest: Manifest, config: Lfm2Config) -> Manifest:
    """Load it and read a few tokens; the manifest, with what was found.

    Raises:
        BundleError, RuntimeUnavailableError: it does not load here.
        SourceError: it gives no numbers, or other ones after a step than at once.
    """
    # `igpu` needs a device that may not be here; the graph is the same on a CPU.
    device = {} if manifest.runtime == "ort" else {"device": "cpu"}
    runtime: Runtime = find_runtime(manifest.runtime)(
        Bundle(folder, manifest, config), threads=None, **device
    )
    try:
        traits = _find_traits(runtime, manifest)
    finally:
        runtime.close()
    assert manifest.imported is not None
    return replace(manifest, imported=replace(manifest.imported, traits=traits))


def _find_traits(runtime: Runtime, manifest: Manifest) -> tuple[str, ...]:
    assert manifest.imported is not None
    count = min(_TRIED, manifest.context_length)
    tokens = [(11 * place + 3) % runtime.config.vocab_size for place in range(count)]
    session = runtime.open(1, count)
    at_once = session.prefill([tokens])[0]
    if not np.isfinite(at_once).all():
        raise SourceError(
            f"{manifest.imported.file} gives logits that are not finite for tokens {tokens}: it is "
            "damaged, or not for CPUs; take another variant"
        )
    size = float(np.abs(at_once).max()) or 1.0

    def differs(pieces: list[list[int]]) -> bool:
        session.reset()
        logits = [session.prefill([piece])[0] for piece in pieces][-1]
        return float(np.abs(logits - at_once).max()) > _TOLERANCE * size

    if count < 3:
        return manifest.imported.traits
    if differs([[token] for token in tokens]):
        raise SourceError(
            f"{manifest.imported.file} gives other logits token by token than at once, so its states "
            "are not what they seem; export the model itself with `lfm2-deploy export`"
        )
    several = differs([tokens[: count // 2], tokens[count // 2 :]])
    return (*manifest.imported.traits, *([ONE_TOKEN] if several else []))
