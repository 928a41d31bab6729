"""`lfm2-deploy compare`: how far bundles, devices and implementations are from a reference."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import note, print_json, show_progress
from lfm2_deploy.commands.failures import ERROR
from lfm2_deploy.commands.options import AsJson, Device, Record, Threads
from lfm2_deploy.compare.defaults import (
    CHUNKS,
    GREEDY,
    LENGTH,
    PROMPTS,
    QUICK_CHUNKS,
    QUICK_GREEDY,
    QUICK_PROMPTS,
    WORST,
)

if TYPE_CHECKING:
    from lfm2_deploy.compare.result import Report

_WHAT = "What to compare on"
_KEEP = "What to keep"


def compare(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="SUBJECT...",
            help="Bundles' folders or names in the store, FOLDER@DEVICE (as --device takes it), "
            "torch:MODEL, transformers:MODEL.",
            autocompletion=completers.complete_subjects,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="SUBJECT",
            help="Hold them against this, or against base:FILE, a base file of llama.cpp. A "
            "bundle's FOLDER runs where it was made for, whatever --device says.",
            show_default="what the first bundle was made from, in torch",
            autocompletion=completers.complete_subjects,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P,P",
            help="Of a MODEL as export takes it, make and compare bundles in these precisions.",
            autocompletion=completers.complete_precision_list,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="T,T",
            help="Likewise, for these targets.",
            show_default="cpu",
            autocompletion=completers.complete_target_list,
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The LoRA adapter merged into the bundle.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare on this text (UTF-8).",
            show_default="speeches and scripture",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Windows of the text.",
            show_default=f"{CHUNKS}",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    length: Annotated[
        int,
        typer.Option(min=8, metavar="N", help="Tokens of a window.", rich_help_panel=_WHAT),
    ] = LENGTH,
    greedy: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Tokens of each greedy text.",
            show_default=f"{GREEDY}",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"Few windows ({QUICK_CHUNKS}), short texts, speed measured once."
        ),
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure speed and memory as well.")
    ] = True,
    max_kld: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="X", help="Fail above this KL divergence, in nats."),
    ] = None,
    min_same_top: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="X", help="Fail below this share of same top tokens, 0 to 1."
        ),
    ] = None,
    save_base: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the reference as llama.cpp's KL-divergence base file.",
            rich_help_panel=_KEEP,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with plots.", rich_help_panel=_KEEP),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep the reference, so that the next comparison begins at once.",
            rich_help_panel=_KEEP,
        ),
    ] = True,
    record: Record = False,
    threads: Threads = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say how far bundles are from the model they were made from.

    KL divergence, same top tokens, perplexity, where greedy texts part, the worst
    positions, the error of each layer's states, speed and memory. The protocol is
    llama.cpp's: 64 windows of 512 tokens, the second half of each scored. The exit
    code is 1 where a subject fails, or is over a limit.

    \b
    Examples:
      lfm2-deploy compare ./LFM2-350M-cpu-int4 ./LFM2-350M-cpu-int8
      lfm2-deploy compare LiquidAI/LFM2-350M --precision int8,int4
      lfm2-deploy compare ./my-bundle@gpu ./my-bundle@cpu --html report.html
      lfm2-deploy compare ./LFM2-350M-cpu-int4 ./LFM2-350M-cpu-int4@genai
      lfm2-deploy compare ./LFM2-350M-cpu-int4 --quick --max-kld 0.05
      lfm2-deploy compare ./LFM2-350M-cpu-int4 --reference base:f16.kld

    \b
    See also:
      lfm2-deploy verify BUNDLE       one bundle, passed or failed
      lfm2-deploy eval BUNDLE         benchmarks that others publish
    """
    for option, file in (("--html", html), ("--save-base", save_base)):
        if file is not None and file.is_dir():
            raise typer.BadParameter(f"{option} {file}: is a folder, expected a file to write")
        if file is not None and not file.absolute().parent.is_dir():
            raise typer.BadParameter(
                f"{option} {file}: there is no folder {file.absolute().parent}"
            )
        if file is not None:
            _check_writable(option, file)
    if record and (precision or target):
        raise typer.BadParameter(
            "--record is for bundles of your own, and --precision and --target make others: export "
            "first, then compare the bundle"
        )
    with _tell_what_is_kept(save_base), show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy import api
        from lfm2_deploy.compare.measure import Wish
        from lfm2_deploy.compare.run import Settings
        from lfm2_deploy.compare.verdict import Limits

        settings = Settings(
            text=text,
            chunks=chunks or (QUICK_CHUNKS if quick else CHUNKS),
            length=length,
            wish=Wish(
                worst=WORST,
                prompts=QUICK_PROMPTS if quick else PROMPTS,
                greedy_tokens=(QUICK_GREEDY if quick else GREEDY) if greedy is None else greedy,
            ),
            cost=speed,
            quick=quick,
            cache=cache,
            save_base=save_base,
            limits=Limits(max_kld, min_same_top),
        )
        report = api.compare_models(
            subjects,
            reference=reference,
            precisions=_split("--precision", precision),
            targets=_split("--target", target),
            adapter=adapter,
            settings=settings,
            threads=threads,
            device=device,
            progress=progress,
        )
    report = replace(report, command=shlex.join(["lfm2-deploy", *sys.argv[1:]]))
    if as_json:
        from lfm2_deploy.compare.result_json import describe

        print_json(describe(report))
    else:
        from lfm2_deploy.commands.compare_report import print_report

        print_report(report)
        if report.kept:
            note(f"bundles made for this are kept: {report.kept}")
    # Last: where it cannot be written, what was measured is told already.
    if html is not None:
        # It brings templates, which nobody else waits for.
        from lfm2_deploy.compare.report import write_page

        write_page(report, html)
        note(f"page: {html}")
    if record:
        _record(report)
    if not report.verdict.passed:
        raise typer.Exit(ERROR)


def _record(report: Report) -> None:
    """Keep what was measured of each bundle with it."""
    from lfm2_deploy.card.recording import of_comparison
    from lfm2_deploy.commands.card import keep
    from lfm2_deploy.compare.subjects import read_subject

    for subject in report.subjects:
        bundle = read_subject(subject.info.given).bundle
        found = None if bundle is None else of_comparison(bundle, report, subject)
        if bundle is not None and found is not None:
            keep(bundle, [found])


def _check_writable(option: str, file: Path) -> None:
    """Refuse a folder that takes no files: it would be told after an hour of work."""
    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"{option} {file}: nothing can be written in {file.absolute().parent} "
            f"({error.strerror or error})"
        ) from error


@contextmanager
def _tell_what_is_kept(base: Path | None) -> Iterator[None]:
    before: dict[str, set[tuple[Path, int]]] | None = None
    try:
        before = _list_kept(base)
        yield
    except KeyboardInterrupt:
        now = _list_kept(base)
        fresh = [what for what, files in now.items() if before and files - before[what]]
        if fresh:
            from lfm2_deploy.machine import find_cache

            note(f"stopped; kept: {' and '.join(fresh)} (the cache is {find_cache()})")
        else:
            note("stopped; nothing was kept")
        raise


def _list_kept(base: Path | None) -> dict[str, set[tuple[Path, int]]]:
    """Files that say that something is whole, with their times of change."""
    from lfm2_deploy.machine import find_cache

    cache = find_cache()
    found = {
        "the reference": [
            file for file in cache.glob("references/*/record.json") if file.parent.name[0] != "."
        ],
        "bundles": list(cache.glob("compared/*/*/manifest.json")),
        "the base file": [base] if base is not None and base.is_file() else [],
    }
    return {what: {(f, f.stat().st_mtime_ns) for f in files} for what, files in found.items()}


def _split(option: str, words: str | None) -> list[str]:
    """The parts of a list with commas."""
    if words is None:
        return []
    parts = [part.strip().lower() for part in words.split(",")]
    if not all(parts):
        raise typer.BadParameter(f"{option} {words!r}: write names with commas, as int8,int4")
    return list(dict.fromkeys(parts))
