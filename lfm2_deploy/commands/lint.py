"""`lfm2-deploy lint`: what a target would refuse, run elsewhere or get silently wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import note, output, print_json, print_title, printable
from lfm2_deploy.commands.failures import ERROR
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.errors import BundleError

if TYPE_CHECKING:
    from lfm2_deploy.findings import Finding, Linter, LintReport

# So many nodes of a finding are named.
_NAMED = 3
# openvino-genai's, which run on the CPU wherever the model runs.
_TOKENIZERS = ("tokenizer.xml",)
_STYLES = {
    "refused": "bold red",
    "silently wrong": "bold red",
    "runs elsewhere": "yellow",
    "remark": "dim",
}


# Of bundles for several devices, what a target has besides its own graphs.
_BESIDE = {"cpu": ("cpu",), "openvino-cpu": ("cpu",), "igpu": ("gpu",)}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be looked at.

    Args:
        target: whose rules apply.
        graphs: files.
        skipped: graphs of a bundle that do not run on its target.
    """

    target: str
    graphs: tuple[Path, ...]
    skipped: tuple[str, ...] = ()


def lint(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE|DIR",
            help="A bundle, an .onnx or .xml file, or a folder of such files.",
            autocompletion=completers.complete_bundles,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="directml, webgpu, npu, igpu, openvino-cpu, cpu or qnn.",
            show_default="the bundle's own",
            autocompletion=completers.complete_linted_targets,
        ),
    ] = None,
    remarks: Annotated[
        bool, typer.Option("--remarks", help="Show remarks in full, not only their number.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find what a target would refuse, run elsewhere or get wrong.

    It names every such node of a bundle's graphs, or of other tools' ONNX and OpenVINO
    files, with the reason and what to do.

    Graphs are read, not run: the rules come from tables of kernels and from the
    sources of ONNX Runtime and OpenVINO, and each finding says which. The exit code
    is 1 if there are findings; remarks, such as what is slow, are not counted.

    \b
    Examples:
      lfm2-deploy lint ./LFM2-350M-cpu-int4 --target directml
      lfm2-deploy lint ./somebody-elses/model.onnx --target webgpu --remarks
      lfm2-deploy lint ./LFM2-350M-npu-int4 --json

    \b
    See also:
      lfm2-deploy compile BUNDLE      Intel's own compiler's word
      lfm2-deploy check BUNDLE        on the device itself
    """
    from lfm2_deploy.registry import find_lint
    from lfm2_deploy.store.resolve import find_stored

    what = find_stored(what) or what
    subject = find_subject(what.expanduser(), target)
    linter: Linter = find_lint(subject.target)
    report = linter.lint(_choose_files(subject, linter))
    if as_json:
        print_json({"path": str(what), **_describe(report), "skipped": list(subject.skipped)})
    else:
        _print(what, report, subject, remarks)
    if report.faults:
        raise typer.Exit(ERROR)


def find_subject(what: Path, target: str | None) -> Subject:
    """The graphs at a path, and whose rules apply.

    Args:
        what: a bundle, a file or a folder.
        target: as the user named it; None for the bundle's own.

    Raises:
        BundleError: there is nothing, or no target for it.
    """
    wanted = target.lower() if target else None
    if (what / "manifest.json").is_file():
        return _open_bundle(what, wanted)
    if not what.exists():
        raise BundleError(
            f"{what} does not exist: give a bundle, an .onnx or .xml file, or a folder"
        )
    if wanted is None:
        raise BundleError(
            f"{what} is not a bundle (no manifest.json), so it does not say what it is for: "
            "name a target with --target"
        )
    if not what.is_dir():
        return Subject(wanted, (what,))
    files = tuple(path for path in sorted(what.rglob("*")) if path.is_file())
    tokenizers = tuple(path for path in files if path.name.endswith(_TOKENIZERS))
    names = tuple(path.name for path in tokenizers)
    return Subject(wanted, tuple(path for path in files if path not in tokenizers), names)


def _open_bundle(path: Path, target: str | None) -> Subject:
    from lfm2_deploy.bundle import open_bundle

    bundle = open_bundle(path)
    records, asked = bundle.manifest.graphs, target or bundle.manifest.target
    # Graphs beside the target's own are for the CPU or GPU.
    here = {"target", *_BESIDE.get(asked, ())}
    there = dict.fromkeys(one.file for one in records if one.device in here)
    elsewhere = tuple(f"{one.file} ({one.device})" for one in records if one.device not in here)
    return Subject(asked, tuple(path / file for file in there), elsewhere)


def _choose_files(subject: Subject, linter: Linter) -> tuple[Path, ...]:
    """Those that the rules can be applied to."""
    chosen = tuple(path for path in subject.graphs if path.suffix in linter.suffixes)
    if chosen:
        return chosen
    found = sorted({path.suffix or "no suffix" for path in subject.graphs}) or ["no files"]
    raise BundleError(
        f"nothing there that lint reads for {subject.target}: expected "
        f"{' or '.join(linter.suffixes)}, found {', '.join(found[:5])}"
    )


def _print(what: Path, report: LintReport, subject: Subject, remarks: bool) -> None:
    print_title(
        str(what),
        f"{report.target}, {_count(report.nodes, 'node')}, {_count(report.rules, 'rule')}",
    )
    shown = [one for one in report.findings if remarks or one.outcome != "remark"]
    for rule in dict.fromkeys(one.rule for one in shown):
        _print_rule([one for one in shown if one.rule == rule])
    if subject.skipped:
        note(f"not looked at, since they do not run on the target: {', '.join(subject.skipped)}")
    for line in report.unchecked:
        note(f"not checked: {line}")
    hidden = len(report.findings) - len(shown)
    if hidden:
        note(f"{_count(hidden, 'remark')}: --remarks shows them")
    output().print(_judge(report), soft_wrap=True)


def _print_rule(findings: Sequence[Finding]) -> None:
    """What one rule found, with what is the same for all of it said once."""
    first = findings[0]
    title = Text.assemble((first.outcome, _STYLES[first.outcome]), f"  {first.rule}")
    output().print(title, soft_wrap=True)
    for found in findings:
        about = f"{len(found.nodes)} x {found.operator}" if found.operator else "graph"
        names = ", ".join(found.nodes[:_NAMED]) + (" ..." if len(found.nodes) > _NAMED else "")
        line = f"  {about}: {found.seen}; expected {found.expected}"
        output().print(
            Text.assemble(printable(line), (f"  {printable(names)}", "dim")), soft_wrap=True
        )
    for label, text in (("do", first.advice), ("source", first.source)):
        output().print(Text.assemble((f"  {label:<8}", "dim"), text), soft_wrap=True)


def _judge(report: LintReport) -> Text:
    """One line that claims no more than was done."""
    checked = f"statically checked for {report.target}, not run there"
    if not report.faults:
        return Text.assemble(("clean", "bold green"), f": {checked}")
    count = sum(len(finding.nodes) for finding in report.faults)
    kinds = ", ".join(dict.fromkeys(str(finding.outcome) for finding in report.faults))
    found = _count(len(report.faults), "finding")
    return Text.assemble((found, "bold red"), f" on {_count(count, 'node')} ({kinds}): {checked}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _describe(report: LintReport) -> dict[str, Any]:
    return {**asdict(report), "clean": not report.faults, "checked": "statically"}
