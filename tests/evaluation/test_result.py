"""The harness's record of a run, read into values."""

from __future__ import annotations

from lfm2_deploy.evaluation.result import Metric, TaskResult, read_results

RAW = {
    "results": {
        "both": {"alias": "both", "acc,none": 0.6, "acc_stderr,none": 0.1, "sample_len": 30},
        "named": {"alias": "named"},
        "one": {"alias": "one", "acc,none": 0.5, "acc_stderr,none": 0.2, "sample_len": 10},
        "two": {
            "name": "two",
            "exact_match,strict": 1,
            "exact_match_stderr,strict": "N/A",
            "exact_match,loose": 0.75,
            "exact_match_stderr,loose": 0.05,
        },
    },
    "group_subtasks": {"both": ["one", "inner"], "inner": ["two"], "named": ["one"]},
    "n-samples": {
        "one": {"original": 100, "effective": 10},
        "two": {"original": 20, "effective": 20},
    },
    "n-shot": {"one": 5},
    "versions": {"one": 1.0, "both": "N/A"},
    "higher_is_better": {"one": {"acc": True}, "both": {"acc": True}},
}


def test_tasks_come_before_groups_and_names_without_figures_are_left_out() -> None:
    one, two, both = read_results(RAW)
    acc = Metric("acc", "none", 0.5, 0.2, True)
    assert one == TaskResult("one", "1.0", 5, 10, 100, (acc,))
    assert [(m.name, m.filter, m.value, m.stderr) for m in two.metrics] == [
        ("exact_match", "strict", 1.0, None),
        ("exact_match", "loose", 0.75, 0.05),
    ]
    assert (both.name, both.samples, both.total, both.tasks) == ("both", 30, 120, ("one", "inner"))
