"""`lfm2-deploy export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    notes,
    print_facts,
    print_json,
    print_title,
    quote,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, Part, Precision
from lfm2_deploy.commands.sizes import parse_size
from lfm2_deploy.store.names import name_bundle

if TYPE_CHECKING:
    from lfm2_deploy.auto import Choice
    from lfm2_deploy.bundle import Bundle

_NPU = "For --target npu and qnn"
_ROUNDING = "How weights are rounded"
_EARLIER = "Where something is there already"
# The platforms to compile for where none is named: Lunar Lake, Snapdragon X.
_PLATFORMS = {"npu": "4000", "qnn": "60"}


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder, a Hub id such as LiquidAI/LFM2-350M, a GGUF file (of the "
            "Hub: LiquidAI/LFM2-350M-GGUF:Q4_0), or synthetic:NAME for random weights.",
            autocompletion=completers.complete_models,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT", help="The folder to make.", show_default="./MODEL-TARGET-PRECISION"
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where it will run; `doctor` lists targets. auto: what this computer runs.",
            autocompletion=completers.complete_targets_or_auto,
        ),
    ] = "cpu",
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="NAME", help="How weights are stored: fp32 (exact), fp16, int8 or int4 (small)."
        ),
    ] = "int4",
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Longest conversation, in tokens: prompt and answers.",
            show_default="the model's, at most 32768, and 1024 for npu and qnn",
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a prompt that one call of the graph takes.",
            show_default="npu: 128, qnn: 64",
            rich_help_panel=_NPU,
        ),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Where experts run beside an NPU: npu, gpu or cpu.",
            show_default="npu",
            autocompletion=completers.complete_expert_devices,
            rich_help_panel=_NPU,
        ),
    ] = None,
    compile_now: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile ahead of time, where there is a compiler; see `compile`.",
            rich_help_panel=_NPU,
        ),
    ] = False,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER",
            help="With --compile, several times if wanted: npu: 3720, 4000, 5010; qnn: 60, 88.",
            show_default="npu: 4000, qnn: 60",
            autocompletion=completers.complete_npu_platforms,
            rich_help_panel=_NPU,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="How int8 and int4 weights are rounded: rtn, search, or calibrated on a text and "
            "more exact: awq, gptq, awq+gptq.",
            show_default="search",
            autocompletion=completers.complete_methods,
            rich_help_panel=_ROUNDING,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text to calibrate on: weights, where --quantize does, and the ranges of "
            "activations, where they are rounded (qnn).",
            show_default="one that is built in",
            rich_help_panel=_ROUNDING,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most that the bundle may take, such as 700MB: sensitive layers, found by "
            "measurement, get more bits within it.",
            rich_help_panel=_ROUNDING,
        ),
    ] = None,
    part: Part = None,
    inputs_embeds: Annotated[
        bool,
        typer.Option(
            "--inputs-embeds",
            help="Make a decoder that takes embeddings in place of token ids, for programs that "
            "bring those of images or sounds (cpu; npu's always does).",
        ),
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A PEFT LoRA adapter to merge in.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a bundle that is already there, or what an interrupted export rounded.",
            rich_help_panel=_EARLIER,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where an interrupted export ended.",
            rich_help_panel=_EARLIER,
        ),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Encode weights on a Ray cluster, such as auto or ray://head:10001; "
            "local for one on this machine.",
        ),
    ] = None,
    io: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Programs that shall read the bundle, too, separated by commas: genai "
            "(onnxruntime-genai), genai-legacy (before 0.17), transformersjs.",
            show_default="genai, for target cpu",
            autocompletion=completers.complete_readers,
        ),
    ] = None,
    canary: Annotated[
        bool,
        typer.Option(
            "--canary/--no-canary",
            help="Record prompts and what their logits must be, to check devices with.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make a bundle: one folder with all that running a model needs.

    It holds the graphs of a target, the weights in a precision, the tokenizer, the
    chat template and sampling settings. Folders come in, or models from the Hub,
    which are downloaded as they are read. A bundle appears when it is whole; what an
    interrupted export finished is kept for --resume.

    \b
    Examples:
      lfm2-deploy export LiquidAI/LFM2-350M
      lfm2-deploy export ./my-finetune ./my-bundle --precision int8 --context 4096
      lfm2-deploy export LiquidAI/LFM2-350M --target npu --context 2048 --compile
      lfm2-deploy export LiquidAI/LFM2-350M --target auto
      lfm2-deploy export ./LFM2-350M-Q8_0.gguf --target webgpu
      lfm2-deploy export LiquidAI/LFM2-350M --io genai,transformersjs
      lfm2-deploy export LiquidAI/LFM2-350M --quantize gptq --calibrate mine.txt --max-size 260MB
      lfm2-deploy export LiquidAI/LFM2-VL-450M --part text --inputs-embeds

    \b
    See also:
      lfm2-deploy plan MODEL          what it will take, before
      lfm2-deploy chat BUNDLE         talk with it
      lfm2-deploy verify BUNDLE       is it still the model?
      lfm2-deploy inspect BUNDLE      what is in it, and why
    """
    if platform and not compile_now:
        raise typer.BadParameter("--platform says for what to compile: add --compile")
    max_size_bytes = 0 if max_size is None else parse_size(max_size, "700MB")
    chosen = _choose_target(model, target.lower(), precision, context, revision, part)
    name = chosen if isinstance(chosen, str) else chosen.target
    place = out or Path(name_bundle(model, adapter, name, precision, part, inputs_embeds))
    started = time.monotonic()
    if overwrite and not resume:
        _tell_what_is_discarded(place)
    with _tell_how_to_resume(place), show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy import api

        bundle = api.export(
            model,
            place,
            target=chosen,
            precision=precision,
            context_length=context,
            chunk=chunk,
            experts=experts,
            compile_for=(platform or [_PLATFORMS.get(target.lower(), "4000")])
            if compile_now
            else (),
            calibrate=calibrate,
            canary=canary,
            quantize=quantize,
            max_size_bytes=max_size_bytes,
            part=part,
            inputs_embeds=inputs_embeds,
            io=[name.strip().lower() for name in (io or "").split(",") if name.strip()],
            revision=revision,
            adapter=adapter,
            overwrite=overwrite,
            resume=resume,
            cluster=cluster,
            progress=progress,
        )
    _report(
        bundle, time.monotonic() - started, as_json, None if isinstance(chosen, str) else chosen
    )


def _choose_target(
    model: str,
    target: str,
    precision: str,
    context: int | None,
    revision: str | None,
    part: str | None,
) -> str | Choice:
    """The target as it was named; for auto, the choice, after it was shown."""
    from lfm2_deploy.auto import AUTO

    if target != AUTO:
        return target
    from lfm2_deploy.api import choose_target
    from lfm2_deploy.commands.auto_report import print_choice

    note("looking for what this computer can run ...")
    choice = choose_target(
        model, precision=precision, context_length=context, revision=revision, part=part
    )
    print_choice(choice.candidates, notes())
    return choice


@contextmanager
def _tell_how_to_resume(place: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from lfm2_deploy.unfinished import find_kept

        kept = find_kept(place)
        if kept is not None:
            note(f"stopped; the same command with --resume goes on (kept in {quote(kept)})")
        raise


def _tell_what_is_discarded(place: Path) -> None:
    from lfm2_deploy.unfinished import count_rounded

    layers = count_rounded(place)
    if layers:
        note(f"--overwrite without --resume: discarding {layers} layers that were rounded before")


def _report(bundle: Bundle, seconds: float, as_json: bool, choice: Choice | None) -> None:
    told = choice.describe() if choice else ""  # by the table
    for assumption in bundle.manifest.notes:
        if assumption != told:
            note(f"assumed: {assumption}")
    if as_json:
        auto = [asdict(found) for found in choice.candidates] if choice else None
        print_json({**_describe(bundle, seconds), "auto": auto})
        return
    manifest = bundle.manifest
    print_title(str(bundle.path), f"made in {seconds:.1f} s")
    print_facts(
        {
            "model": manifest.model,
            "size": format_bytes(bundle.size_bytes),
            "precision": manifest.precision,
            "target": manifest.target,
            "context": f"{manifest.context_length:,} tokens",
        }
    )
    path = quote(bundle.path)
    if "tokenizer.json" in manifest.files:
        note(f'next: lfm2-deploy generate {path} "Once upon a time"')
    else:
        note(f"next: lfm2-deploy inspect {path} (it has no tokenizer, so it takes no text)")


def _describe(bundle: Bundle, seconds: float) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "model": manifest.model,
        "target": manifest.target,
        "precision": manifest.precision,
        "context_length": manifest.context_length,
        "size_bytes": bundle.size_bytes,
        "files": {name: record.size_bytes for name, record in manifest.files.items()},
        "notes": list(bundle.manifest.notes),
        "seconds": seconds,
    }
