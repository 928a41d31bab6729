"""Which tasks there are, and which are meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy.errors import EvaluationError
from lfm2_deploy.evaluation.catalog import choose_names, list_local_tasks
from lfm2_deploy.evaluation.local_data import TASK_FOLDER

NAMES = ["arc_easy", "arc_challenge", "hellaswag", "mmlu_law", "mmlu_physics"]


def test_own_tasks_are_described_and_have_their_data() -> None:
    tasks = list_local_tasks()
    names = ["lfm2_demo_ending", "lfm2_demo_last_word", "lfm2_demo_perplexity"]
    assert [task.name for task in tasks] == names
    for task in tasks:
        count = int(task.description.partition(" items")[0].split()[-1])
        data = TASK_FOLDER / f"{task.name.removeprefix('lfm2_demo_')}.jsonl"
        if task.name == "lfm2_demo_perplexity":
            data = TASK_FOLDER / "passage.jsonl"
        assert len(data.read_text(encoding="utf-8").splitlines()) == count


def test_names_may_be_patterns_and_come_once() -> None:
    chosen = choose_names(["mmlu_*", "arc_easy", "mmlu_law"], NAMES)
    assert chosen == ["mmlu_law", "mmlu_physics", "arc_easy"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("helaswag", "did you mean hellaswag?"),
        ("law", "did you mean mmlu_law?"),
        ("zzz", "see lfm2-deploy eval --list"),
        ("zzz*", "see lfm2-deploy eval --list"),
    ],
)
def test_unknown_task_is_told_with_what_is_near(asked: str, words: str) -> None:
    with pytest.raises(EvaluationError) as failure:
        choose_names([asked], NAMES)
    assert f"there is no task {asked!r}" in str(failure.value)
    assert words in str(failure.value)


def test_folder_of_the_users_is_searched_in_depth(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.yaml").write_text("# what it asks\ntask: 'one'  # or two\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask:\n  - one\n")
    (tmp_path / "include.yaml").write_text("metric_list: []\n")
    found = {task.name: task.description for task in list_local_tasks(tmp_path)}
    assert found == {"all": "", "one": "what it asks"}


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_tasks_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "absent"
    expected = "holds no task" if exists else "there is no such folder"
    with pytest.raises(EvaluationError, match=expected):
        list_local_tasks(folder)
