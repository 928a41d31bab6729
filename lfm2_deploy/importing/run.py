"""`import_model`: somebody else's export becomes a bundle, or is refused in one line.

What the graph computes stays as it is, so comparing the bundle compares the export. Before the
bundle is whole it is loaded and reads a few tokens, in one piece and token by token: what it cannot
do is recorded, and a graph that does not run leaves nothing behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_deploy.bundle import Bundle, check_destination, open_bundle, seal
from lfm2_deploy.card.write import begin_card
from lfm2_deploy.checkpoint import is_gguf, open_checkpoint
from lfm2_deploy.checkpoint.folder import CONFIG_FILE, SIDE_FILES
from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import (
    FloatArray,
    Origin,
    Progress,
    Runtime,
    Session,
    ignore_progress,
)
from lfm2_deploy.entry import PACKAGE
from lfm2_deploy.errors import (
    ConfigError,
    SourceError,
    UnsupportedModelError,
)
from lfm2_deploy.imported import LEFT_PADDING, ONE_TOKEN, ImportedRecord
from lfm2_deploy.importing.adopted import Adopted
from lfm2_deploy.importing.source import GGUF, ONNX, Found, find_source
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import SCHEMA_VERSION, GraphRecord, Manifest
from lfm2_deploy.model_parts import find_whole
from lfm2_deploy.registry import ADOPTERS, GGUF_IMPORTER, find_runtime
from lfm2_deploy.states import list_states
from lfm2_deploy.unfinished import writing_bundle

# As long as LFM2's conversations are; a longer context is asked for.
_USUAL_CONTEXT = 32768
_TARGETS = {ONNX: ("cpu",), "openvino": ("openvino-cpu", "igpu")}
# Tokens that are tried, and how far logits read in pieces may be from those read at once, as a part
# of the largest: 8-bit activations differ by about 1 %, a state that is ignored by all of it.
_TRIED, _TOLERANCE = 6, 0.1


@dataclass(frozen=True, slots=True)
class Description:
    """What a model is.

    Args:
        raw: config.json as it was found.
        config: the same, parsed.
        origin: recorded in the manifest.
        files: tokenizer, chat template and generation config, where there are any.
    """

    raw: dict[str, Any]
    config: Lfm2Config
    origin: Origin
    files: Mapping[str, Path]


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
        The bundle. That of a graph has no canary, since nothing says what its weights should give.

    Raises:
        Lfm2DeployError: in one line; nothing is left at `out`.
    """
    check_destination(Path(out), overwrite)
    named = is_gguf(str(source))
    found = None if named else find_source(str(source), variant, revision, progress)
    if found is None or found.kind == GGUF:
        _refuse_for_gguf(against=against, context=context_length)
        bundle: Bundle = GGUF_IMPORTER.load()(
            str(source) if found is None else found.address,
            out,
            target=target or "cpu",
            revision=revision,
            overwrite=overwrite,
            progress=progress,
        )
        return bundle
    chosen = _choose_target(found, target)
    model = _describe(found, against)
    with writing_bundle(Path(out), overwrite) as folder:
        progress("reading the graph", 0, 0)
        adopted: Adopted = ADOPTERS[found.kind].load()(found.file, folder, model.config)
        _refuse_npu(found, target, adopted)
        manifest = _describe_bundle(found, adopted, model, chosen, context_length)
        _take_along(model, folder)
        progress("trying it", 0, 0)
        seal(folder, _try(folder, manifest, model.config), progress)
        begin_card(folder, Path(out))
    return open_bundle(out)


def _refuse_for_gguf(**options: object) -> None:
    """A GGUF file says itself what these say of a graph."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise SourceError(
            f"--{given[0]} is for graphs, and a GGUF file holds all that is known of its model: "
            "leave it out, or use `lfm2-deploy export` for a choice of precision and context"
        )


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
            "its conv masks take the mask's first columns (mask[:, :s]), so padding on the left "
            "gets into conv states when a prompt is read in chunks, and answers are wrong"
        )
    raise SourceError(
        f"{found.name} is not to be run on an NPU: {reason}; export the model itself with "
        "`lfm2-deploy export --target npu`"
    )


def _describe(found: Found, against: str | None) -> Description:
    """What the model is, by the export's own files and then by the checkpoint it was made from.

    Raises:
        SourceError: neither says.
    """
    beside = {name: found.find_beside(name) for name in SIDE_FILES}
    files = {name: file for name, file in beside.items() if file is not None}
    own = found.find_beside(CONFIG_FILE)
    if against is not None:
        checkpoint = open_checkpoint(against)
        files = {**checkpoint.side_files, **files}
        if own is None:
            raw = dict(checkpoint.raw_config)
            return Description(raw, checkpoint.config, checkpoint.origin, files)
    if own is None:
        raise SourceError(
            f"{found.folder} has no config.json (onnxruntime-genai's builder writes none): name "
            "the checkpoint it was made from with --against, or put its config.json there"
        )
    raw = read_json_object(own, ConfigError, "download it again")
    origin = found.origin if against is None else checkpoint.origin
    return Description(raw, _check_config(raw, own), origin, files)


def _check_config(raw: dict[str, Any], file: Path) -> Lfm2Config:
    whole = find_whole(raw)
    if whole is not None:
        raise UnsupportedModelError(
            f"{file} is of a {whole.kind} model ('{whole.name}'), whose decoder takes "
            "embeddings and is not run here; give a text model's export"
        )
    return parse_config(raw)


def _describe_bundle(
    found: Found,
    adopted: Adopted,
    model: Description,
    target: str,
    context_length: int | None,
) -> Manifest:
    config = model.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=model.origin.name,
        origin=model.origin,
        target=target,
        runtime=adopted.runtime,
        precision=adopted.precision,
        context_length=_choose_context(config, adopted.positions, context_length),
        config=model.raw,
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


def _take_along(model: Description, folder: Path) -> None:
    """config.json, tokenizer, chat template and generation defaults."""
    for name, file in model.files.items():
        shutil.copyfile(file, folder / name)
    (folder / CONFIG_FILE).write_text(json.dumps(model.raw, indent=2) + "\n", encoding="utf-8")


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
    """The traits known from the graph, and what a few tokens tell."""
    assert manifest.imported is not None
    file, traits = manifest.imported.file, manifest.imported.traits
    count = min(_TRIED, manifest.context_length)
    tokens = [(11 * place + 3) % runtime.config.vocab_size for place in range(count)]
    session = runtime.open(1, count)
    at_once = _read(session, [tokens], file)
    if not np.isfinite(at_once).all():
        raise SourceError(
            f"{file} gives logits that are not finite for tokens {tokens}: it is damaged, or not "
            "for CPUs; take another variant"
        )
    if count < _TRIED:
        return traits
    if _differ(_read(session, [[token] for token in tokens], file), at_once):
        raise SourceError(
            f"{file} gives other logits token by token than at once, so its states are not what "
            "they seem; export the model itself with `lfm2-deploy export`"
        )
    halves = [tokens[: count // 2], tokens[count // 2 :]]
    try:
        whole = not _differ(_read(session, halves, file), at_once)
    except SourceError:  # a graph whose mask is for the beginning and for single tokens alone
        whole = False
    return traits if whole else (*traits, ONE_TOKEN)


def _read(session: Session, pieces: list[list[int]], file: str) -> FloatArray:
    """Logits after all pieces, of a fresh row.

    Raises:
        SourceError: the graph fails.
    """
    session.reset()
    logits: FloatArray
    try:
        logits = [session.prefill([piece]) for piece in pieces][-1]
    except Exception as error:  # a backend's own, of no common base
        reason = str(error).splitlines()[0]
        raise SourceError(
            f"{file} loads and does not run here ({reason}): take another variant, or export the "
            "model itself with `lfm2-deploy export`"
        ) from error
    return np.array(logits[0], np.float32)


def _differ(logits: FloatArray, others: FloatArray) -> bool:
    largest = float(np.abs(others).max())
    return float(np.abs(logits - others).max()) > _TOLERANCE * largest
