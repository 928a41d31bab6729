"""`lfm2-deploy compile`: what Intel's NPU compiler says of a bundle's graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    output,
    print_json,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle

_PLATFORMS = ("3720", "4000", "5010")


def compile_graphs(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="The folder that `export --target npu` made."),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER",
            help="3720, 4000 or 5010; may be given several times.",
            show_default="all three",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Every expert, not one of each layer for all.")
    ] = False,
    set_up: Annotated[
        bool, typer.Option("--set-up", help="On Linux: download the compiler first (170 MB).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compile an NPU bundle with Intel's compiler, on a machine without an NPU.

    Tells for each graph whether the compiler takes it, how large it becomes, and how
    long its cost model expects one call to take: an estimate of the compiler's, never a
    measurement. Platforms: 3720 (Meteor and Arrow Lake), 4000 (Lunar Lake), 5010
    (Panther Lake). On Linux the compiler of OpenVINO's Windows wheel runs under Wine.
    The exit code is 1 if it refuses a graph.

    \b
    Examples:
      lfm2-deploy compile --set-up
      lfm2-deploy compile ./LFM2-350M-npu-int4 --platform 4000
    """
    if bundle is None and not set_up:
        raise typer.BadParameter("name a bundle to compile, or --set-up")
    opened = None if bundle is None else _open(bundle)
    if set_up:
        from lfm2_deploy.registry import NPU_COMPILER_SET_UP

        with show_progress() as progress:
            NPU_COMPILER_SET_UP.load()(lambda step: progress(step, 0, 0))
        note("the NPU compiler is ready")
    if opened is not None:
        results = _compile(opened, platform or list(_PLATFORMS), every)
        print_json({"graphs": results}) if as_json else _print(opened, results)
        if any(result["verdict"] is None for result in results):
            raise typer.Exit(1)


def _open(path: Path) -> Bundle:
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.errors import BundleError

    bundle = open_bundle(path)
    if bundle.manifest.target != "npu":
        raise BundleError(
            f"{path} was made for {bundle.manifest.target}, which is not compiled ahead of time: "
            "export the model with --target npu"
        )
    return bundle


def _compile(bundle: Bundle, platforms: list[str], every: bool) -> list[dict[str, Any]]:
    from lfm2_deploy.registry import NPU_COMPILER

    with show_progress() as progress:
        done = NPU_COMPILER.load()(
            bundle.path, bundle.manifest.graphs, platforms, progress, alike=every
        )
        return [asdict(one) for one in done]


def _print(bundle: Bundle, results: list[dict[str, Any]]) -> None:
    taken = [r["verdict"] for r in results if r["verdict"] is not None]
    versions = {(verdict["compiler"], verdict["openvino"]) for verdict in taken}
    for compiler, openvino in versions:
        print_title(str(bundle.path), f"Intel's NPU compiler {compiler}, of OpenVINO {openvino}")
    table = Table("graph", "begins with", "platform", box=None, pad_edge=False)
    for name in ("estimate", "blob", "compiled in"):
        table.add_column(name, justify="right")
    for result in results:
        verdict = result["verdict"]
        if verdict is None:
            table.add_row(result["graph"], result["start"], result["platform"], "refused", "", "")
            continue
        estimate = verdict["estimated_us"]
        table.add_row(
            result["graph"],
            result["start"],
            verdict["platform"],
            "none" if estimate is None else f"{estimate / 1000:.2f} ms",
            format_bytes(verdict["blob_bytes"]),
            f"{verdict['seconds']:.0f} s",
        )
    output().print(table)
    for result in results:
        if result["refusal"]:
            note(result["refusal"])
    note("estimates are the compiler's, for one call of a graph; nothing was executed")
