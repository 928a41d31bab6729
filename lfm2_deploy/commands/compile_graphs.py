"""`lfm2-deploy compile`: what Intel's NPU compiler says of a bundle's graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    output,
    print_facts,
    print_json,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, find_bundle
from lfm2_deploy.static_graphs import DECODE, EXPERT_ROWS, EXPERTS, NPU_PLATFORMS, PREFILL

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle


def compile_graphs(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE",
            parser=find_bundle,
            help="The folder that `export --target npu` made, or the name of a model in the store.",
            autocompletion=completers.complete_bundles,
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER",
            help="NPU to compile for: 3720, 4000 or 5010; may be given several times.",
            show_default="all three",
            autocompletion=completers.complete_npu_platforms,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Compile every expert, not one of each layer for all.")
    ] = False,
    set_up: Annotated[
        bool, typer.Option("--set-up", help="On Linux: download the compiler first (87 MB).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try Intel's NPU compiler on a bundle; no NPU is needed.

    Tells for each graph whether the compiler takes it, how large it becomes, and how
    long its cost model expects one call to take: an estimate of the compiler's, never a
    measurement. Nothing is kept; `export --compile` does that. Of a layer's experts,
    which are alike, one is compiled. The exit code is 1 if a graph is refused.

    Platforms: 3720 (Meteor and Arrow Lake), 4000 (Lunar Lake), 5010 (Panther Lake).
    On Linux the compiler of OpenVINO's Windows wheel runs under Wine, which must be
    installed: sudo apt install wine wine64 g++-mingw-w64-x86-64-posix

    \b
    Examples:
      lfm2-deploy compile --set-up
      lfm2-deploy compile ./LFM2-350M-npu-int4 --platform 4000

    \b
    See also:
      lfm2-deploy export MODEL --target npu --compile     keep what the compiler made
      lfm2-deploy lint BUNDLE                             rules, where there is no compiler
    """
    if bundle is None and not set_up:
        raise typer.BadParameter("name a bundle to compile, or --set-up")
    opened = None if bundle is None else _open(bundle)
    platforms = list(dict.fromkeys(platform or NPU_PLATFORMS))
    _check_platforms(platforms)
    if set_up:
        from lfm2_deploy.registry import NPU_COMPILER_SET_UP

        with show_progress() as progress:
            NPU_COMPILER_SET_UP.load()(lambda step: progress(step, 0, 0))
        note("the NPU compiler is ready")
    if opened is not None:
        results = _compile(opened, platforms, every)
        totals = _add_up(opened, results)
        if as_json:
            print_json({"graphs": results, "totals": totals})
        else:
            _print(opened, results)
            _print_totals(opened, totals)
        if any(result["verdict"] is None for result in results):
            raise typer.Exit(1)


def _check_platforms(platforms: list[str]) -> None:
    from lfm2_deploy.registry import NPU_PLATFORM_CHECK

    for platform in platforms:
        NPU_PLATFORM_CHECK.load()(platform)


def _open(path: Path) -> Bundle:
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.errors import BundleError

    bundle = open_bundle(path)
    if bundle.manifest.target != "npu":
        raise BundleError(
            f"{path} was made for {bundle.manifest.target}, which is not compiled ahead of time by "
            "Intel's compiler: export the model with --target npu"
        )
    return bundle


def _compile(bundle: Bundle, platforms: list[str], every: bool) -> list[dict[str, Any]]:
    from lfm2_deploy.registry import NPU_COMPILER

    with show_progress() as progress:
        done = NPU_COMPILER.load()(
            bundle.path, bundle.manifest.graphs, platforms, progress, alike=every
        )
        return [asdict(one) for one in done]


def _add_up(bundle: Bundle, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each platform, one token and one chunk of a prompt, of what runs on the NPU.

    A token takes K experts of a layer, a chunk all of them, each for up to EXPERT_ROWS tokens a
    call. Absent where a graph was refused.
    """
    moe, totals = bundle.config.moe, []
    for platform in dict.fromkeys(result["platform"] for result in results):
        own = [r for r in results if r["platform"] == platform]
        if any(r["verdict"] is None or r["verdict"]["estimated_us"] is None for r in own):
            continue
        estimates: dict[str, list[float]] = {}
        for result in own:
            estimates.setdefault(result["graph"], []).append(result["verdict"]["estimated_us"])
        experts = [sum(us) / len(us) for name, us in estimates.items() if name.startswith(EXPERTS)]
        chosen = moe.num_experts_per_tok if moe else 0
        spread = -(-bundle.manifest.chunk * chosen // EXPERT_ROWS)
        of_chunk = max(moe.num_experts, spread) if moe else 0
        totals.append(
            {
                "platform": platform,
                "decode_us": sum(estimates[DECODE]) + chosen * sum(experts),
                "prefill_us": sum(estimates[PREFILL]) + of_chunk * sum(experts),
                "decode_calls": len(estimates[DECODE]) + chosen * len(experts),
                "prefill_calls": len(estimates[PREFILL]) + of_chunk * len(experts),
            }
        )
    return totals


def _print_totals(bundle: Bundle, totals: list[dict[str, Any]]) -> None:
    elsewhere = ["embeddings", "head"]
    if bundle.config.moe is not None:
        elsewhere.append("routers")
    others = {g.device for g in bundle.manifest.graphs if g.name.startswith(EXPERTS)} - {"target"}
    elsewhere += [f"experts ({device})" for device in sorted(others)]
    output().print()
    print_facts({f"in all, {total['platform']}": _tell(bundle, total) for total in totals})
    note(f"without what runs elsewhere ({', '.join(elsewhere)}) and what calls themselves cost")


def _tell(bundle: Bundle, total: dict[str, Any]) -> str:
    def part(name: str, what: str) -> str:
        calls = total[f"{name}_calls"]
        return f"{total[f'{name}_us'] / 1000:.2f} ms {what} in {calls} call{'s' * (calls > 1)}"

    chunk = f"for {bundle.manifest.chunk} tokens of a prompt"
    return f"{part('decode', 'a token')}, {part('prefill', chunk)}"


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
