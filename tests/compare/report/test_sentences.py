"""What a page says in words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lfm2_deploy.compare.report import sentences
from lfm2_deploy.compare.report.values import write_error, write_value
from lfm2_deploy.compare.result import ErrorStart, Estimate, Report, StateErrors, Verdict

from .made_up import make_report
from .pages import read_page


def without_limit(report: Report) -> Report:
    return replace(report, verdict=Verdict(True, ""))


def test_verdict_names_the_limit_and_who_broke_it() -> None:
    verdict = sentences.judge(make_report(("int4", "broken")))
    assert (verdict.tone, verdict.word) == ("bad", "Failed")
    assert verdict.sentence == "1 of 2 did not pass. The limit: KL divergence at most 0.1 nats."
    assert verdict.reasons == ("directml-int4: KL divergence is over 0.1",)


@pytest.mark.parametrize(
    ("kinds", "start"),
    [
        (("int4",), "The limit"),
        (("int8", "int4"), "Both passed."),
        (("int8",) * 3, "All 3 passed."),
    ],
)
def test_verdict_that_passes_says_how_many(kinds: tuple[str, ...], start: str) -> None:
    verdict = sentences.judge(make_report(kinds))
    assert (verdict.tone, verdict.word) == ("good", "Passed")
    assert verdict.sentence.startswith(start)


def test_without_a_limit_nothing_is_judged() -> None:
    report = without_limit(make_report(("int4",)))
    assert sentences.judge(report).tone == "plain"
    assert "--max-kld" in read_page(report).text
    assert sentences.tell_outcome(report, report.subjects[0]) == "plain"
    assert "passed" not in read_page(report).text


def test_subject_that_failed_without_a_limit_is_told() -> None:
    report = make_report(("int4", "failed"))
    verdict = Verdict(False, "", ("webgpu-int4: the device was lost",))
    judged = sentences.judge(replace(report, verdict=verdict))
    assert judged.sentence == "1 of 2 subjects ran to the end."
    assert judged.reasons == verdict.reasons


def test_jump_of_the_states_is_noticed_even_where_all_pass() -> None:
    report = without_limit(make_report(("broken",)))
    (notice,) = sentences.judge(report).notices
    assert notice.startswith("directml-int4: the error of its states jumps in layer 5")
    assert notice in read_page(report).text
    assert not sentences.judge(make_report(("int4",))).notices


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("LiquidAI/LFM2-350M", "LiquidAI/LFM2-350M"),
        ("/home/me/models/mine/", "mine"),
        ("./mine", "mine"),
        ("C:\\models\\mine", "mine"),
        ("/", "/"),
    ],
)
def test_headline_names_a_folder_without_its_place(name: str, shown: str) -> None:
    report = make_report(("int4",))
    report = replace(report, reference=replace(report.reference, name=name))
    assert sentences.write_headline(report) == f"cpu-int4 against {shown}"


def test_start_of_the_error_is_told_with_advice() -> None:
    start = ErrorStart(5, "key", 0.55, 0.0023, "look at layer 5")
    told = sentences.describe_start(StateErrors(make_states().rows, start))
    assert (
        told
        == "It starts in the keys of layer 5: 0.55, after at most 0.0023 before. Look at layer 5."
    )
    first = StateErrors(make_states().rows, replace(start, layer=0, before=0.0))
    assert sentences.describe_start(first).startswith(
        "It starts in the keys of layer 0: 0.55. Look"
    )


def make_states() -> StateErrors:
    states = make_report(("int4",)).subjects[0].states
    assert states is not None
    return states


def test_states_without_a_start_tell_first_and_largest() -> None:
    states = make_states()
    worst = max(states.rows[-1].errors, key=lambda error: error.error)
    told = sentences.describe_start(states)
    assert told.startswith("No layer stands out: ")
    assert told.endswith(f"in layer {worst.layer}.")
    assert (
        sentences.describe_start(StateErrors((), None, "no states")) == "Not measured: no states."
    )
    assert sentences.describe_start(None) == "Not measured."


@pytest.mark.parametrize(
    ("margin", "start"),
    [
        (0.0, "A near tie"),
        (0.24, "A near tie"),
        (0.25, "The reference holds"),
        (0.5, "The reference holds"),
        (3.0, "No tie, so a fault"),
    ],
)
def test_margin_is_judged_as_on_the_terminal(margin: float, start: str) -> None:
    assert sentences.name_margin(margin).startswith(start)


def test_greedy_texts_that_agree_are_shown_once() -> None:
    report = make_report(("fp32", "int8", "int4"))
    (group,) = sentences.group_runs(report)
    assert [name for _, name, _ in group.alike] == ["cpu-fp32", "cpu-int8"]
    assert [name for _, name, _ in group.parted] == ["cpu-int4"]
    assert read_page(report).text.count("My dear Mr. Bennet") == 1


def test_rest_of_a_greedy_text_begins_after_the_token_that_differs() -> None:
    (run,) = make_report(("int4",)).subjects[0].greedy
    assert sentences.list_rest(run) == " for a wife, and that"


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.0233, 0.00042, ("0.02330", "± 0.00042")),
        (18.4213, 0.31, ("18.42", "± 0.31")),
        (0.0233, math.nan, ("0.0233", "")),
        (math.nan, math.nan, ("NaN", "")),
        (0.0, 0.0, ("0", "± 0")),
    ],
)
def test_means_have_the_digits_their_error_warrants(
    value: float, error: float, shown: tuple[str, str]
) -> None:
    estimate = Estimate(value, error)
    assert (write_value(estimate), write_error(estimate)) == shown


@pytest.mark.parametrize(
    ("created", "shown"),
    [("2026-11-26T05:44:41+00:00", "26 November 2026, 05:44 UTC"), ("yesterday", "yesterday")],
)
def test_date_is_written_out(created: str, shown: str) -> None:
    assert sentences.write_date(created) == shown
