"""A comparison on the terminal: tables, then where and how subjects differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from lfm2_deploy.commands.columns import Line, print_lines
from lfm2_deploy.commands.console import (
    format_bytes,
    output,
    print_facts,
    print_table,
    print_title,
    printable,
)
from lfm2_deploy.compare.margin import judge_margin
from lfm2_deploy.compare.result import (
    Candidate,
    Decoding,
    Estimate,
    GreedyRun,
    Report,
    StateErrors,
    SubjectResult,
    WorstPosition,
)
from lfm2_deploy.compare.verdict import list_notices

# Of the worst positions, those that a terminal shows; JSON and the page have all.
_WORST_SHOWN = 3
# Below this, in nats, both say the same in every digit that is shown.
_WORTH_TELLING = 1e-6
_MARGINS = {
    "near tie": ("a near tie", "yellow"),
    "between": ("not quite a tie", "yellow"),
    "fault": ("no tie: a fault, or much lost", "bold red"),
}
_LEAST_NAME = 12


def print_report(report: Report) -> None:
    """Write a whole comparison to stdout."""
    reference = report.reference
    print_title(reference.name, f"is the reference: {reference.detail}")
    print_facts(_list_facts(report))
    done = [subject for subject in report.subjects if subject.scores is not None]
    if done:
        output().print()
        _print_scores(done)
    if any(subject.cost for subject in done):
        output().print()
        _print_costs(done)
        if report.disturbed:
            print_lines([Line("speeds", "note", "yellow", report.disturbed)])
    _print_decoding(done)
    _print_states(done)
    _print_greedy(done)
    _print_worst(done)
    _print_remarks(report)
    _print_verdict(report)
    _print_notices(report)


def _list_facts(report: Report) -> dict[str, str | Text]:
    protocol, reference = report.protocol, report.reference
    facts: dict[str, str | Text] = {
        "text": protocol.text,
        "windows": f"{protocol.windows} of {protocol.length} tokens, the second half of each "
        f"scored: {protocol.positions:,} positions",
        "perplexity": f"{format_estimate(reference.perplexity)} of the reference",
        "±": f"standard error over {protocol.error_over}",
    }
    if reference.resolution:
        facts["resolution"] = f"{reference.resolution:.0e} nats: the reference is in 16 bits"
    if protocol.remarks:
        facts["note"] = "; ".join(protocol.remarks)
    return facts


def _print_scores(subjects: Sequence[SubjectResult]) -> None:
    columns = ("subject", ">KL divergence", "±", ">99 %", ">same top", ">top 5", ">perplexity")
    rows = []
    for subject in subjects:
        scores = subject.scores
        assert scores is not None
        mean, error = split_estimate(scores.divergence.mean)
        rows.append(
            (
                subject.info.name,
                mean,
                error,
                f"{scores.divergence.p99:.2g}",
                f"{scores.same_top.value:.2%}",
                f"{scores.top5_overlap.value:.1%}",
                f"{scores.perplexity.value:.4g}",
            )
        )
    _print_named(columns, rows)


def _print_costs(subjects: Sequence[SubjectResult]) -> None:
    columns = ("subject", ">prefill tok/s", ">decode tok/s", ">memory", ">on disk", "device")
    rows = []
    for subject in subjects:
        cost, size = subject.cost, subject.info.size_bytes
        rates = (f"{cost.prefill:,.0f}", f"{cost.decode:,.1f}") if cost else ("-", "-")
        peak = "-" if cost is None or cost.peak_bytes is None else format_bytes(cost.peak_bytes)
        disk = "-" if size is None else format_bytes(size)
        rows.append((subject.info.name, *rates, peak, disk, printable(subject.info.device)))
    _print_named(columns, rows)


def _print_named(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose names, and last column where it is text, give way to a narrow terminal."""
    console = output()
    others = list(zip(columns, *rows, strict=True))[1:]
    taken = sum(2 + max(len(cell.removeprefix(">")) for cell in column) for column in others)
    longest = max(len(row[0]) for row in rows)
    room = max(_LEAST_NAME, min(longest, console.width - 2 - taken))
    shortened = [(shorten(row[0], room), *row[1:]) for row in rows]
    if not columns[-1].startswith(">"):
        taken -= max(len(cell) for cell in others[-1])
        left = max(len(columns[-1]), console.width - 2 - taken - max(room, len(columns[0])))
        shortened = [(*row[:-1], shorten(row[-1], left)) for row in shortened]
    print_table(columns, shortened)


def _print_decoding(subjects: Sequence[SubjectResult]) -> None:
    lines = [
        _tell_decoding(_name(subject), subject.decoding)
        for subject in subjects
        if subject.decoding is not None
    ]
    if lines:
        _print_heading("decoding", "the same token by token?")
        print_lines(lines)


def _tell_decoding(name: str, decoding: Decoding) -> Line:
    alone = format_estimate(decoding.divergence)
    text = f"{alone} nats one by one, {decoding.together:.2g} together, {decoding.positions} tokens"
    if decoding.stands_out:
        advice = "look at what is kept between calls: keys, values, convolution states"
        return Line(name, "worse", "bold red", f"{text}: {advice}")
    return Line(name, "as prompts", "green", text)


def _print_states(subjects: Sequence[SubjectResult]) -> None:
    lines = []
    for subject in subjects:
        if subject.states is not None:
            word, style, text = _tell_states(subject.states)
            lines.append(Line(_name(subject), word, style, text))
    if lines:
        _print_heading("states", "where does the error start?")
        print_lines(lines)


def _tell_states(states: StateErrors) -> tuple[str, str, str]:
    if states.absent:
        return "not available", "dim", states.absent
    start = states.start
    if start is not None:
        before = f", up to {start.before:.1g} before" if start.before else ""
        found = f"{start.kind} {start.error:.2g}{before}: {start.advice}"
        return f"layer {start.layer}", "bold red", found
    errors = states.rows[-1].errors
    worst = max(errors, key=lambda found: found.error)
    first = max(found.error for found in errors if found.layer == errors[0].layer)
    return (
        "no jump",
        "green",
        f"{first:.1g} of its size in layer {errors[0].layer}, at most {worst.error:.1g} "
        f"({worst.kind}, layer {worst.layer}), after {states.rows[-1].tokens} tokens",
    )


def _print_greedy(subjects: Sequence[SubjectResult]) -> None:
    told = [subject for subject in subjects if subject.greedy]
    if not told:
        return
    _print_heading("greedy texts", "as the reference would have gone on?")
    print_lines([_tell_greedy(subject) for subject in told])
    for subject in told:
        parted = [run for run in subject.greedy if run.margin is not None]
        if parted:
            # Near ties part by chance; the largest margin says most.
            _print_run(_name(subject), max(parted, key=lambda run: run.margin or 0.0))


def _tell_greedy(subject: SubjectResult) -> Line:
    runs = subject.greedy
    parted = [run for run in runs if run.margin is not None]
    same = f"{len(runs) - len(parted)} of {len(runs)}"
    if not parted:
        counts = [run.tokens for run in runs]
        each = " to ".join(map(str, sorted({min(counts), max(counts)})))
        return Line(_name(subject), f"{same} same", "green", f"all {each} tokens of each")
    places = ", ".join(str(run.equal + 1) for run in parted)
    margin = max(run.margin or 0.0 for run in parted)
    agreement = sum(run.agreement * run.tokens for run in runs) / sum(run.tokens for run in runs)
    text = f"first other token: number {places}; margin at most {margin:.2g} nats"
    word, style = _MARGINS[judge_margin(margin)]
    return Line(
        _name(subject), f"{same} same", style, f"{text} ({word}); {agreement:.1%} agreed to"
    )


def _print_run(name: str, run: GreedyRun) -> None:
    assert run.reference_choice is not None
    assert run.subject_choice is not None
    context = f"{run.prompt}{run.common}"
    _print_block(
        f"{name}, token {run.equal + 1}, {run.margin:.2g} nats",
        [
            ("after", show_end(context, _room())),
            ("reference", show_candidate(run.reference_choice)),
            ("subject", f"{show_candidate(run.subject_choice)}, then "
             f"{show_start(run.subject_text[len(run.subject_choice.text):], _room() - 24)}"),
        ],
    )  # fmt: skip


def _print_worst(subjects: Sequence[SubjectResult]) -> None:
    told = [
        (_name(subject), place)
        for subject in subjects
        for place in subject.worst[:_WORST_SHOWN]
        if place.divergence >= _WORTH_TELLING
    ]
    if told:
        _print_heading("worst positions", "by KL divergence")
    for name, place in told:
        _print_place(name, place)


def _print_place(name: str, place: WorstPosition) -> None:
    following = place.next_token
    chances = f"{show_percent(following.probability)} and {show_percent(place.next_probability)}"
    _print_block(
        f"{name}, {place.divergence:.2g} nats at token {place.position} of window {place.window}",
        [
            ("after", show_end(place.context, _room())),
            ("next", f"{quote(following.text)} ({chances})"),
            ("reference", ", ".join(map(show_candidate, place.reference))),
            ("subject", ", ".join(map(show_candidate, place.subject))),
        ],
    )


def _print_block(title: str, lines: Sequence[tuple[str, str]]) -> None:
    console = output()
    console.print(Text(f"  {printable(title)}"), soft_wrap=True)
    for label, text in lines:
        head = Text.assemble((f"    {label:<10}", "dim"), printable(text))
        console.print(head, soft_wrap=True)


def _print_remarks(report: Report) -> None:
    lines = []
    for subject in report.subjects:
        if subject.failure:
            lines.append(Line(_name(subject), "failed", "bold red", subject.failure))
        for remark in (*subject.remarks, *subject.info.notes):
            lines.append(Line(_name(subject), "note", "yellow", remark))
    if lines:
        output().print()
        print_lines(lines)


def _print_verdict(report: Report) -> None:
    verdict = report.verdict
    if not verdict.rule and verdict.passed:
        return
    word, style = ("passed", "bold green") if verdict.passed else ("failed", "bold red")
    output().print()
    # A limit right after "failed:" would read as what was seen.
    missing = ": every subject must be compared to its end"
    rule = f"; limit: {verdict.rule}" if verdict.rule else missing
    output().print(Text.assemble((word, style), rule), soft_wrap=True)
    lines = [
        Line(_name(subject), "failed", style, reason.removeprefix(f"{subject.info.name}: "))
        for subject in report.subjects
        for reason in verdict.reasons
        if reason.startswith(f"{subject.info.name}: ")
    ]
    if verdict.rule and lines:
        print_lines(lines)


def _print_notices(report: Report) -> None:
    """Under "passed" stands what may be a fault all the same."""
    if report.verdict.rule and report.verdict.passed:
        for notice in list_notices(report):
            line = Text.assemble(("  but ", "bold red"), printable(notice))
            output().print(line, soft_wrap=True)


def _print_heading(title: str, remark: str) -> None:
    output().print()
    print_title(title, remark)


def _name(subject: SubjectResult) -> str:
    """A subject's name where it stands before a sentence."""
    return shorten(subject.info.name, max(_LEAST_NAME, output().width // 3))


def _room() -> int:
    """Columns that a line of a block has for its text."""
    return max(30, min(output().width, 120) - 14)


def split_estimate(estimate: Estimate) -> tuple[str, str]:
    """A mean and its error as text, with as many digits as the error allows.

    0.02221 and 0.00126 become "0.0222" and "0.0013".
    """
    value, error = estimate.value, estimate.error
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return f"{value:.3g}", "-" if not math.isfinite(error) else f"{error:.1g}"
    if max(abs(value), error) < 1e-4:
        return f"{value:.2e}", f"{error:.0e}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f}", f"{error:.{digits}f}"


def format_estimate(estimate: Estimate) -> str:
    """A mean ± its standard error."""
    value, error = split_estimate(estimate)
    return value if error == "-" else f"{value} ± {error}"


def show_percent(share: float) -> str:
    """A probability with about two digits: 53 %, 0.29 %, <0.01 %."""
    if share < 1e-4:
        return "<0.01 %"
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.2g} %"


def show_candidate(candidate: Candidate) -> str:
    """A token and its probability."""
    return f"{quote(candidate.text)} {show_percent(candidate.probability)}"


def quote(text: str) -> str:
    """A piece of text in quotation marks, on one line."""
    return f'"{_one_line(text)}"'


def show_end(text: str, width: int) -> str:
    """The end of a text, on one line."""
    line = _one_line(text)
    return f'"{line}"' if len(line) + 2 <= width else f'…{line[-(width - 2) :]}"'


def show_start(text: str, width: int) -> str:
    """The beginning of a text, on one line."""
    line = _one_line(text)
    return f'"{line}"' if len(line) + 2 <= width else f'"{line[: width - 2]}…'


def shorten(text: str, width: int) -> str:
    """A text with its middle left out where it is too long."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}" if tail else text[:width]


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", " ")
