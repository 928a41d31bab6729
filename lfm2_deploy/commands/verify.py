"""`lfm2-deploy verify`: is a bundle still the model it was made from?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    output,
    print_facts,
    print_json,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.failures import ERROR
from lfm2_deploy.commands.options import AsJson, BundlePath, Device, Record, Threads

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.commands.passage import Passage
    from lfm2_deploy.compare.compare import Comparison

# Arithmetic in another order moves float32 logits by about a millionth of the largest.
MOST_RELATIVE_ERROR = 1e-4
# Most KL divergence, in nats, that a precision may cost. Rules of thumb, well above what
# the demo model measures (int8 0.0005, int4 0.02).
MOST_KLD = {"fp16": 1e-3, "int8": 0.05, "int4": 0.2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a comparison is good enough, and the rule that says so."""

    passed: bool
    rule: str


def verify(
    bundle: BundlePath,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare with this model: a folder, Hub id or GGUF file.",
            show_default="its origin",
            autocompletion=completers.complete_models,
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The LoRA adapter merged into the bundle.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compare on this text (UTF-8).", show_default="a page of Austen"
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Compare on at most so many tokens.")
    ] = 512,
    greedy: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also generate N tokens greedily.")
    ] = 32,
    max_kld: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="X",
            help="Pass up to this KL divergence, in nats.",
            show_default="by precision",
        ),
    ] = None,
    record: Record = False,
    threads: Threads = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Compare a bundle with the torch model it was made from.

    The exit code is 1 if it is too far off. An fp32 bundle passes if its largest
    logit error is at most 0.0001 of the largest logit and all greedy tokens are
    equal. Others pass by their KL divergence: at most 0.001 for fp16, 0.05 for
    int8 and 0.2 for int4. These limits are rules of thumb: the model of `demo`
    is at 0.0005 in int8 and 0.02 in int4, and others may differ.

    \b
    Examples:
      lfm2-deploy verify ./LFM2-350M-cpu-int4
      lfm2-deploy verify ./my-bundle --against ./my-finetune --text letter.txt

    \b
    See also:
      lfm2-deploy compare BUNDLE...   several bundles and devices, with plots
      lfm2-deploy check BUNDLE        does this device compute what it must?
    """
    with show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy import api
        from lfm2_deploy.bundle import open_bundle
        from lfm2_deploy.commands.passage import choose_passage
        from lfm2_deploy.compare.origin import open_reference

        opened = open_bundle(bundle)
        passage = choose_passage(opened, text, tokens, greedy)
        checkpoint = open_reference(opened, against, adapter, progress)
        comparison = api.verify(
            opened,
            checkpoint,
            passage.rows,
            greedy_tokens=greedy,
            threads=threads,
            device=device,
            progress=progress,
        )
    verdict = judge(comparison, opened.manifest.precision, max_kld)
    if as_json:
        print_json(_describe(opened, passage, comparison, verdict))
    else:
        _print(opened, passage, comparison, verdict)
    if record:  # last: where it cannot be kept, what was found is told already
        from lfm2_deploy.card.recording import of_verify
        from lfm2_deploy.commands.card import keep

        text_read = passage.description
        keep(opened, [of_verify(opened, comparison, text_read, verdict.passed, verdict.rule)])
    if not verdict.passed:
        raise typer.Exit(ERROR)


def judge(comparison: Comparison, precision: str, max_kld: float | None) -> Verdict:
    """Hold a comparison against the rule of its precision.

    Args:
        comparison: what was measured.
        precision: of the bundle.
        max_kld: a limit that replaces the rule.
    """
    limit = MOST_KLD.get(precision) if max_kld is None else max_kld
    if limit is not None:
        source = f"the default of {precision}" if max_kld is None else "as asked"
        rule = f"KL divergence at most {limit:g} ({source})"
        return Verdict(comparison.kld <= limit, rule)
    same = comparison.greedy_equal == comparison.greedy_tokens
    close = comparison.max_error <= MOST_RELATIVE_ERROR * comparison.scale
    rule = f"logit error at most {MOST_RELATIVE_ERROR:g} of the largest, greedy tokens equal"
    return Verdict(same and close, f"{rule} (the default of {precision})")


def list_comparison_facts(comparison: Comparison) -> dict[str, str | Text]:
    """How far two runtimes are apart, by label."""
    kld = f"{comparison.kld:.2g} ± {comparison.kld_error:.1g} nats"
    relative = comparison.max_error / comparison.scale if comparison.scale else math.nan
    before, after = comparison.reference_perplexity, comparison.tested_perplexity
    return {
        "KL divergence": kld,
        "same top token": f"{comparison.same_top:.1%} of {comparison.positions:,} positions",
        "logit error": f"up to {relative:.1e} of the largest logit",
        "perplexity": f"{after:.4g} (reference {before:.4g})",
        "greedy tokens": f"{comparison.greedy_equal} of {comparison.greedy_tokens} equal",
    }


def _print(bundle: Bundle, passage: Passage, comparison: Comparison, verdict: Verdict) -> None:
    print_title(str(bundle.path), f"{bundle.manifest.precision} against torch in float32")
    device = {"device": comparison.device}
    print_facts({"on": passage.description, **device, **list_comparison_facts(comparison)})
    word, style = ("passed", "bold green") if verdict.passed else ("failed", "bold red")
    output().print(Text.assemble((word, style), f": {verdict.rule}"), soft_wrap=True)


def _describe(
    bundle: Bundle, passage: Passage, comparison: Comparison, verdict: Verdict
) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "precision": bundle.manifest.precision,
        "text": passage.description,
        "rows": [len(row) for row in passage.rows],
        **asdict(comparison),
        **asdict(verdict),
    }
