"""`lfm2-deploy import`: somebody else's export becomes a bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    print_facts,
    print_json,
    print_title,
    quote,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a .onnx, .xml or .gguf file, or a Hub id with such files.",
            autocompletion=completers.complete_models,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]", help="The folder to make.", show_default="./NAME-VARIANT-imported"
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which, where there are several: q4, fp16, Q4_0, ...",
            show_default="",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where it will run; a GGUF file fits cpu and webgpu.",
            show_default="cpu, of an OpenVINO IR openvino-cpu",
            autocompletion=completers.complete_targets,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The checkpoint it was made from, where the folder has no config.json.",
            autocompletion=completers.complete_models,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Most tokens of a conversation.",
            show_default="the model's, at most 32,768",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    io: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Of a GGUF file: programs besides our own that shall read it, as `export` has "
            "them.",
            show_default="",
            autocompletion=completers.complete_readers,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is already there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of somebody else's export, so that every command here runs it.

    ONNX graphs of onnxruntime-genai's builder, Liquid AI and onnx-community, and OpenVINO IRs of
    optimum-intel stay as they compute: names and widths of states change at the graph's edges, and
    weights are copied as they are. GGUF files become graphs of ours with their own numbers.
    What cannot run is refused in one line. An imported graph has no canary, as nothing says what
    its weights should give, so `verify --against` or `compare` tell how good it is.

    \b
    Examples:
      lfm2-deploy import onnx-community/LFM2-350M-ONNX --variant q4
      lfm2-deploy import ./genai-model ./imported --against LiquidAI/LFM2-350M
      lfm2-deploy import ./optimum-intel-ir --target igpu
      lfm2-deploy import LiquidAI/LFM2-350M-GGUF:Q4_0 --io transformersjs

    \b
    See also:
      lfm2-deploy inspect BUNDLE      where it came from, and what it cannot do
      lfm2-deploy compare BUNDLES     theirs beside ours
      lfm2-deploy export MODEL        a bundle of the model itself
    """
    started = time.monotonic()
    with show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy.importing import run

        bundle = run.import_model(
            source,
            out or Path(_name(source, variant)),
            variant=variant,
            target=None if target is None else target.lower(),
            against=against,
            context_length=context,
            revision=revision,
            overwrite=overwrite,
            io=[name.strip().lower() for name in (io or "").split(",") if name.strip()],
            progress=progress,
        )
    if as_json:
        from lfm2_deploy.commands.bundle_report import describe_bundle

        print_json({**describe_bundle(bundle), "seconds": time.monotonic() - started})
        return
    _print(bundle, time.monotonic() - started)


def _name(source: str, variant: str | None) -> str:
    """A folder here, after what is imported."""
    place = Path(source)
    name = place.stem if place.suffix in (".onnx", ".xml", ".gguf") else place.resolve().name
    return "-".join(part for part in (name, variant, "imported") if part)


def _print(bundle: Bundle, seconds: float) -> None:
    from lfm2_deploy.imported import TRAITS

    manifest = bundle.manifest
    print_title(str(bundle.path), f"imported in {seconds:.1f} s")
    facts = {
        "model": manifest.model,
        "size": format_bytes(bundle.size_bytes),
        "precision": manifest.precision,
        "target": manifest.target,
        "context": f"{manifest.context_length:,} tokens",
    }
    if manifest.imported is not None:
        facts["graph"] = manifest.imported.describe()
    print_facts(facts)
    for trait in manifest.imported.traits if manifest.imported else ():
        note(f"this graph: {TRAITS[trait]}")
    path = quote(bundle.path)
    if manifest.imported is not None:
        note(
            "it has no canary: nothing says what its weights should give; see how good it is with "
            f"lfm2-deploy verify {path} --against MODEL"
        )
    if "tokenizer.json" in manifest.files:
        note(f'next: lfm2-deploy generate {path} "Once upon a time"')
    else:
        note(f"next: lfm2-deploy inspect {path} (it has no tokenizer, so it takes no text)")
