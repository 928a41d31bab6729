"""`lfm2-deploy inspect`: what a bundle or a checkpoint is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lfm2_deploy.commands.console import note, print_json, show_progress
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.errors import BundleError


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle, or a model as `export` takes it: folder, Hub id, synthetic:NAME.",
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Of a bundle: list how each tensor is stored.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Of a bundle: hash every file, as after a copy.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a bundle or a model is made of.

    \b
    Examples:
      lfm2-deploy inspect ./LFM2-350M-cpu-int4 --check
      lfm2-deploy inspect synthetic:LFM2-8B-A1B
    """
    if (Path(what).expanduser() / "manifest.json").is_file():
        _inspect_bundle(Path(what).expanduser(), tensors, check, as_json)
        return
    if tensors or check:
        raise BundleError(
            f"{what} is not a bundle (no manifest.json), and --tensors and --check are for bundles"
        )
    _inspect_model(what, revision, as_json)


def _inspect_bundle(path: Path, tensors: bool, check: bool, as_json: bool) -> None:
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.commands import bundle_report

    bundle = open_bundle(path)
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


def _inspect_model(model: str, revision: str | None, as_json: bool) -> None:
    from lfm2_deploy.checkpoint import describe_model
    from lfm2_deploy.commands import model_report

    config, origin = describe_model(model, revision)
    if as_json:
        print_json(model_report.describe_model(config, origin))
    else:
        model_report.print_model(config, origin)
