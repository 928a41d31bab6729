"""Checkpoint -> bundle, as users ask for it: checked before anything is downloaded or computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfm2_deploy.auto import AUTO, Choice, Wish, choose
from lfm2_deploy.bundle import Bundle, check_destination
from lfm2_deploy.calibration_text import choose_calibration, choose_text
from lfm2_deploy.canary.script import choose_tokens
from lfm2_deploy.chat import ChatTemplate
from lfm2_deploy.checkpoint import describe_model, open_checkpoint
from lfm2_deploy.contracts import Checkpoint, Progress, ignore_progress
from lfm2_deploy.errors import ExportError
from lfm2_deploy.registry import (
    CLUSTER,
    CLUSTER_RECIPE,
    EXPORT_OPTIONS,
    EXPORTER,
    GRAPH_COMPILERS,
    NPU_BLOBS,
    NPU_COMPILER_FINDER,
    NPU_PLATFORM_CHECK,
    find_target,
)
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.unfinished import check_unfinished


def export(
    model: str,
    out: str | Path,
    *,
    target: str | Choice = "cpu",
    precision: str = "int4",
    context_length: int | None = None,
    chunk: int | None = None,
    experts: str | None = None,
    compile_for: Sequence[str] = (),
    revision: str | None = None,
    adapter: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    cluster: str | None = None,
    calibrate: str | Path | None = None,
    canary: bool = True,
    quantize: str | None = None,
    max_size_bytes: int = 0,
    part: str | None = None,
    inputs_embeds: bool = False,
    io: Sequence[str] = (),
    progress: Progress = ignore_progress,
) -> Bundle:
    """Make a bundle from a checkpoint.

    Args:
        model: a local folder, a Hub id such as "LiquidAI/LFM2-350M", a GGUF file (of the Hub
            "LiquidAI/LFM2-350M-GGUF:Q4_0"), or "synthetic:LFM2-350M" for random weights of that
            shape.
        out: the folder to make.
        target: where it will run; "auto" for what this machine runs best, or what
            `choose_target` gave. A target that is named is made, whatever this machine runs.
        precision: "fp32", "fp16", "int8" or "int4".
        context_length: most tokens a row may hold; None for the model's, at most 32,768, and
            for target "npu" 1,024.
        chunk: tokens that one call of a prompt takes, where a target has fixed shapes ("npu").
        experts: which device runs a mixture's experts, where a target leaves a choice: of "npu",
            "npu" itself, "gpu" or "cpu".
        compile_for: NPU platforms to compile for ahead of time: Intel's "3720", "4000" and "5010"
            for target "npu", Qualcomm's "60" and "88" for target "qnn".
        revision: branch, tag or commit of a Hub repository.
        adapter: folder of a PEFT LoRA adapter to merge in.
        overwrite: replace a bundle that is already at `out`, and discard layers that an interrupted
            export there has rounded, which is refused otherwise.
        resume: go on where an interrupted export of the same model to `out` ended, if one
            did; the bundle is the same, byte for byte.
        cluster: encode weights on a Ray cluster: "local", or an address as `ray.init` takes
            it. A folder must be reachable under the same path on every node.
        calibrate: a text to round weights on, where `quantize` calibrates, and to find the ranges
            of activations with, where a target rounds them ("qnn"); None for one that is built in.
        quantize: how int8 and int4 weights are rounded: "rtn", "search" (the default), and with
            a calibration text "awq", "gptq" or "awq+gptq".
        max_size_bytes: most bytes that the bundle may take: sensitive layers, found by
            measurement on the calibration text, get more bits within it. 0 for no limit.
        part: "text" for the text part of a vision or audio model, which cannot be exported whole.
        inputs_embeds: make a decoder that takes embeddings in place of token ids, so that a
            program can mix in those of images or sounds; their look-up is a graph of its own.
        io: other programs that shall read the bundle, too: "genai" (onnxruntime-genai from 0.17 on,
            which reads what target "cpu" makes anyway), "genai-legacy" (before), "transformersjs".
        canary: record short prompts with what their logits must be, for `load` to check devices
            with; reads each weight once more.
        progress: told of each step.

    Raises:
        Lfm2DeployError: in one line; nothing is left at `out`. A tokenizer or chat template
            that cannot be used is refused before the weights are read.
    """
    if isinstance(target, str) and target.lower() == AUTO:
        target = choose_target(
            model, precision=precision, context_length=context_length, revision=revision, part=part
        )
    remarks = (target.describe(),) if isinstance(target, Choice) else ()
    target = target.target if isinstance(target, Choice) else target.lower()
    found = find_target(target)
    if compile_for and not found.compiles:
        raise ExportError(f"target {target} is compiled where it runs: leave --compile out")
    options = EXPORT_OPTIONS.load()(
        found,
        precision,
        context_length,
        overwrite,
        resume,
        chunk,
        experts,
        _make_graph_compiler(target, compile_for),
        remarks,
        quantize=quantize,
        max_size_bytes=max_size_bytes,
        inputs_embeds=inputs_embeds,
        io=tuple(io),
    )
    if cluster is not None and options.needs_text:
        asked = "--max-size" if max_size_bytes else f"--quantize {quantize}"
        raise ExportError(
            f"{asked} goes through the layers in order, on one machine: leave --cluster out, or "
            "choose --quantize rtn or search without --max-size"
        )
    # Before a download of gigabytes, not after it.
    check_destination(Path(out), overwrite)
    check_unfinished(Path(out), overwrite, resume)
    checkpoint = open_checkpoint(
        model, revision=revision, adapter=adapter, part=part, progress=progress
    )
    check_text_files(checkpoint)
    options = _add_calibration(options, checkpoint, calibrate)
    if canary:
        options = replace(options, canary=choose_tokens(checkpoint))
    encoder = None
    if cluster is not None:
        recipe = CLUSTER_RECIPE.load()(
            _make_absolute(model), revision, _make_absolute(adapter), target, precision,
            context_length, chunk, experts, quantize, part, inputs_embeds,
        )  # fmt: skip
        encoder = CLUSTER.load()(cluster, recipe)
    bundle: Bundle = EXPORTER.load()(checkpoint, Path(out), options, progress, encoder)
    return bundle


def _add_calibration(options: Any, checkpoint: Checkpoint, text: str | Path | None) -> Any:
    """Export options with tokens to calibrate on, where they are needed.

    Raises:
        ExportError: a text was given for nothing, or cannot be used.
    """
    file = None if text is None else Path(text)
    needs_ranges = options.precision in options.target.calibrated
    if needs_ranges:
        options = replace(options, calibration=choose_calibration(checkpoint, file))
    if options.needs_text:
        options = replace(options, text=choose_text(checkpoint, file))
    elif file is not None and not needs_ranges:
        raise ExportError(
            f"nothing is calibrated: target {options.target.name} rounds no activations in "
            f"{options.precision}; leave --calibrate out, or add --quantize gptq"
        )
    return options


def choose_target(
    model: str,
    *,
    precision: str = "int4",
    context_length: int | None = None,
    revision: str | None = None,
    part: str | None = None,
) -> Choice:
    """What `export` makes with target "auto": the first target in order that this machine runs.

    Devices are really tried, each in a process of its own. Of a model on the Hub, only
    config.json is downloaded.

    Args:
        model, precision, context_length, revision, part: as `export` takes them.

    Returns:
        The target, and of each candidate why it was chosen or passed over.

    Raises:
        RuntimeUnavailableError: this machine can run none, or exporting is not installed.
    """
    config, _ = describe_model(model, revision, part)
    return choose(Wish(config, precision, context_length))


def _make_graph_compiler(target: str, platforms: Sequence[str]) -> Callable[..., Any] | None:
    """What compiles a bundle's graphs for these NPUs; None for none.

    Raises:
        RuntimeUnavailableError: there is no compiler or no such platform, before anything is
            exported.
    """
    if not platforms:
        return None
    platforms = tuple(dict.fromkeys(platforms))
    if target in GRAPH_COMPILERS:
        compiler: Callable[..., Any] = GRAPH_COMPILERS[target].load()(platforms)
        return compiler
    for platform in platforms:
        NPU_PLATFORM_CHECK.load()(platform)
    add_blobs = NPU_BLOBS.load()
    NPU_COMPILER_FINDER.load()()
    return lambda folder, graphs, progress: add_blobs(folder, graphs, platforms, progress)


def _make_absolute(place: str | Path | None) -> str | None:
    """A folder's full path, as other processes have other working folders."""
    if place is None:
        return None
    folder = Path(os.path.expanduser(place))
    return str(folder.resolve()) if folder.exists() else str(place)


def check_text_files(checkpoint: Checkpoint) -> None:
    """Refuse now what `load` would refuse once the bundle is made."""
    files = checkpoint.side_files
    if "tokenizer.json" in files:
        Tokenizer.from_folder(files["tokenizer.json"].parent)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if name in files:
            ChatTemplate.find(files[name].parent)
