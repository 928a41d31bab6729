"""`lfm2-deploy check`: does this device compute what a bundle says it must?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from lfm2_deploy.commands.console import (
    note,
    output,
    print_facts,
    print_json,
    print_remark,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.failures import ERROR
from lfm2_deploy.commands.options import AsJson, BundlePath, Device, Record, Threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.canary.judge import Verdict
    from lfm2_deploy.canary.record import Coverage
    from lfm2_deploy.canary.run import Reading
    from lfm2_deploy.contracts import RuntimeInfo

_STYLES = {"passed": "bold green", "doubtful": "bold yellow", "failed": "bold red"}


def check(
    bundle: BundlePath,
    record: Record = False,
    threads: Threads = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle's files, and that this device computes it rightly.

    Files are hashed, and the canary is run: a few short prompts with logits that torch
    gave for them at export, on the weights as the bundle stores them. `load`,
    `generate` and `chat` hash once, and run it once for each device and driver; this
    command does both now and shows all figures, for a bug report. The exit code is 1
    unless it passes. How much a precision costs in quality is another question, which
    `verify` answers.

    \b
    Examples:
      lfm2-deploy check ./LFM2-350M-npu-int4
      lfm2-deploy check ./LFM2-350M-webgpu-int4 --device gpu --json
      lfm2-deploy check ./LFM2-350M-cpu-int4 --record

    \b
    See also:
      lfm2-deploy verify BUNDLE       what a precision costs in quality
      lfm2-deploy doctor              devices and drivers of this computer
    """
    with show_progress() as progress:
        progress("loading", 0, 0)
        from lfm2_deploy.api import check as run
        from lfm2_deploy.canary.check import find_coverage

        opened, info, verdict, readings = run(
            bundle, threads=threads, device=device, progress=progress
        )
        coverage = find_coverage(opened)
    if as_json:
        print_json(_describe(opened, info, verdict, readings, coverage))
    else:
        _print(opened, info, verdict, readings, coverage)
    if record:  # last: where it cannot be kept, what was found is told already
        from lfm2_deploy.card.recording import of_check
        from lfm2_deploy.commands.card import keep

        keep(opened, [of_check(opened, info, verdict)])
    if verdict.outcome != "passed":
        raise typer.Exit(ERROR)


def _describe(
    bundle: Bundle,
    info: RuntimeInfo,
    verdict: Verdict,
    readings: Sequence[Reading],
    coverage: Coverage | None,
) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "model": bundle.manifest.model,
        "precision": bundle.manifest.precision,
        "target": bundle.manifest.target,
        "runtime": info.runtime,
        "device": info.device,
        "driver": info.driver,
        "arithmetic": info.arithmetic,
        **verdict.describe(),
        "coverage": None if coverage is None else asdict(coverage),
        "readings": [_describe_reading(reading) for reading in readings],
    }


def _describe_coverage(coverage: Coverage) -> str:
    return (
        f"{coverage.run} of {coverage.experts} are run, {coverage.compared} by a token whose "
        "logits are compared"
    )


def _describe_reading(reading: Reading) -> dict[str, Any]:
    return {key: value for key, value in asdict(reading).items() if key != "off"}


def _print(
    bundle: Bundle,
    info: RuntimeInfo,
    verdict: Verdict,
    readings: Sequence[Reading],
    coverage: Coverage | None,
) -> None:
    print_title(str(bundle.path), f"{bundle.manifest.precision} for {bundle.manifest.target}")
    experts = {} if coverage is None else {"experts": _describe_coverage(coverage)}
    print_facts(
        {
            "device": f"{info.device} (runtime {info.runtime})",
            "driver": info.driver or "not known",
            "activations": info.arithmetic or "not known",
            "logit error": f"{verdict.error:.2g} of their spread, at most {verdict.limit:.2g}",
            "KL divergence": f"up to {verdict.kld:.2g} nats",
            "likeliest token": f"{verdict.same_top} of {verdict.calls} right",
            **experts,
            "took": f"{verdict.seconds:.2f} s",
        }
    )
    output().print()
    rows = [
        (
            reading.row + (" (batch)" if reading.rows > 1 else ""),
            reading.kind,
            str(reading.length),
            f"{reading.error:.2g}",
            f"{reading.kld:.2g}",
            str(reading.token),
            "" if reading.token == reading.expected else f"{reading.expected}",
        )
        for reading in readings
    ]
    print_table(("row", "call", ">tokens", ">error", ">KL", ">likeliest", ">expected"), rows)
    print_remark(
        "'error' is a part of the logits' spread; 'expected' is torch's likeliest token, where "
        "another is likeliest here: with a small error, the two are nearly tied, which is no fault"
    )
    output().print()
    reason = f": {verdict.reason}" if verdict.reason else ""
    word = Text.assemble((verdict.outcome, _STYLES[verdict.outcome]), reason)
    output().print(word, soft_wrap=not output().is_terminal)
    if verdict.outcome == "failed":
        from lfm2_deploy.canary.check import advise

        note(advise(bundle, info))
