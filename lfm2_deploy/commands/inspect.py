"""`lfm2-deploy inspect`: what a bundle or a checkpoint is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import note, print_json, show_progress
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.errors import BundleError

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle, or a model as `export` takes it: folder, Hub id, GGUF file, "
            "synthetic:NAME.",
            autocompletion=completers.complete_bundles_and_models,
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Of a bundle: list how each tensor is stored.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Of a bundle: hash every file, as after a copy.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of a bundle: draw rounding by layer (.svg)."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a bundle or a model is made of.

    Of a bundle: target, precision, files, states, how weights were rounded and what it
    cost. Of a model: its shape and layers; only config.json is read.

    \b
    Examples:
      lfm2-deploy inspect ./LFM2-350M-cpu-int4 --check
      lfm2-deploy inspect synthetic:LFM2-8B-A1B
      lfm2-deploy inspect ./LFM2-350M-cpu-int4 --plot rounding.svg

    \b
    See also:
      lfm2-deploy check BUNDLE        does this device compute it rightly?
      lfm2-deploy plan MODEL          what a model will take
    """
    from lfm2_deploy.store.resolve import find_stored

    what = str(find_stored(what) or what)
    if (Path(what).expanduser() / "manifest.json").is_file():
        _inspect_bundle(Path(what).expanduser(), tensors, check, as_json, plot)
        return
    if tensors or check or plot:
        raise BundleError(
            f"{what} is not a bundle (no manifest.json), and --tensors, --check and --plot are "
            "for bundles"
        )
    _inspect_model(what, revision, as_json)


def _inspect_bundle(
    path: Path, tensors: bool, check: bool, as_json: bool, plot: Path | None
) -> None:
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.commands import bundle_report

    bundle = open_bundle(path)
    if plot:
        _draw_rounding(bundle, plot)
    if check:
        with show_progress() as progress:
            bundle.verify(progress)
    if as_json:
        checked = {"checked": True} if check else {}
        print_json({**bundle_report.describe_bundle(bundle), **checked})
        return
    bundle_report.print_bundle(bundle)
    if tensors:
        bundle_report.print_tensors(bundle)
    if check:
        note(f"all {len(bundle.manifest.files)} files are as they were written")


def _draw_rounding(bundle: Bundle, file: Path) -> None:
    """Write the plot before anything is printed, so that stdout is empty where it fails."""
    from lfm2_deploy.charts.rounding import write_rounding

    manifest = bundle.manifest
    if manifest.rounding is None:
        raise BundleError(
            f"{bundle.path} has no record of rounding to draw: it holds {manifest.precision} "
            "weights, or was exported before there was one; export the model again in int4 or int8"
        )
    record = manifest.rounding
    if not record.errors and not record.layers:
        raise BundleError(
            f"{bundle.path} was rounded by method {record.method} and holds no errors: a version "
            "that did not measure them made it; export the model again"
        )
    if file.suffix.lower() != ".svg":
        raise BundleError(f"--plot writes SVG: name {file} with .svg at its end")
    write_rounding(record, file, f"{manifest.model}, {manifest.precision} for {manifest.target}")
    note(f"the plot is in {file}")


def _inspect_model(model: str, revision: str | None, as_json: bool) -> None:
    from lfm2_deploy.checkpoint import describe_model
    from lfm2_deploy.commands import model_report

    config, origin = describe_model(model, revision)
    if as_json:
        print_json(model_report.describe_model(config, origin))
    else:
        model_report.print_model(config, origin)
