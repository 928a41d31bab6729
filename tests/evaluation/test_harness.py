"""Tasks of the harness, loaded and run on the demo model."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="not run: lm-eval is not installed")

import datasets

from lfm2_deploy.errors import EvaluationError, TemplateError
from lfm2_deploy.evaluation.harness import evaluate, load_tasks
from lfm2_deploy.evaluation.result import Evaluation
from lfm2_deploy.evaluation.settings import Settings
from lfm2_deploy.generate import LanguageModel

WRITES = """
task: writes
custom_dataset: !function lfm2_deploy.evaluation.local_data.load_last_words
output_type: generate_until
test_split: test
doc_to_text: "{{context}}"
doc_to_target: " {{word}}"
generation_kwargs: {until: [",", "."], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

IN_A_FRESH_PROCESS = """
import sys

from lfm2_deploy import load
from lfm2_deploy.evaluation.harness import evaluate, load_tasks
from lfm2_deploy.evaluation.settings import Settings

tasks = load_tasks(["lfm2_demo_ending"])
found = evaluate(load(sys.argv[1], threads=1), "demo", tasks, Settings(limit=1))
assert found.tasks[0].samples == 1
print([name for name in ("torch", "onnx", "onnxscript", "transformers") if name in sys.modules])
"""


def write_task(folder: Path, text: str, name: str = "task") -> Path:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def run(
    model: LanguageModel, *names: str, folder: Path | None = None, **options: Any
) -> Evaluation:
    settings = Settings(**{"limit": 3, **options})
    return evaluate(model, "demo", load_tasks(names, folder), settings)


def test_nothing_of_the_harness_reaches_the_screen(
    model: LanguageModel, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = run(model, "lfm2_demo_last_word")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.getLogger("lm_eval").level == logging.NOTSET
    (task,) = found.tasks
    assert (task.samples, task.total, task.few_shot, task.version) == (3, 120, 0, "1.0")
    # Perplexity's error is drawn, for which the harness prints and shows a bar.
    assert [metric.stderr is not None for metric in task.metrics] == [True, True]


def test_neither_torch_nor_transformers_is_loaded(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(bundle)], capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


def test_what_choices_share_is_read_once(model: LanguageModel) -> None:
    found = run(model, "lfm2_demo_ending")
    assert found.tokens_read < 0.5 * found.tokens_asked


def test_progress_counts_every_request(model: LanguageModel) -> None:
    told: list[tuple[str, int, int]] = []
    tasks = load_tasks(["lfm2_demo_ending"])
    evaluate(model, "demo", tasks, Settings(limit=3), lambda *step: told.append(step))
    assert told[0] == ("scoring", 0, 12)
    assert told[-1] == ("scoring", 12, 12)


def test_examples_are_put_in_front_and_do_not_change_from_run_to_run(model: LanguageModel) -> None:
    plain, *shown = (run(model, "lfm2_demo_ending", few_shot=shots) for shots in (0, 2, 2))
    assert [found.tasks[0].few_shot for found in (plain, *shown)] == [0, 2, 2]
    assert shown[0].tokens_asked > 2 * plain.tokens_asked
    assert shown[0].tasks == shown[1].tasks


def test_chats_go_through_the_template(model: LanguageModel) -> None:
    plain, chat = (run(model, "lfm2_demo_last_word", chat=chat) for chat in (False, True))
    assert chat.tokens_asked > plain.tokens_asked
    base = LanguageModel(model.runtime, model.tokenizer)
    with pytest.raises(TemplateError, match="leave --chat-template out"):
        run(base, "lfm2_demo_last_word", chat=True)


def test_answers_are_the_same_in_batches(model: LanguageModel, tmp_path: Path) -> None:
    folder = write_task(tmp_path, WRITES)
    alone, together = (
        run(model, "writes", folder=folder, limit=24, batch_size=size) for size in (1, 4)
    )
    assert alone.tasks == together.tasks
    (figure,) = alone.tasks[0].metrics
    assert 0 < figure.value < 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_gen_toks: 3", "max_gen_toks: 3, num_beams: 4", "num_beams=4"),
        ("max_gen_toks: 3", "max_gen_toks: 2048", "context holds 2,048"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    model: LanguageModel, tmp_path: Path, old: str, new: str, words: str
) -> None:
    folder = write_task(tmp_path, WRITES.replace(old, new))
    with pytest.raises(EvaluationError, match=words):
        run(model, "writes", folder=folder)


def test_sampled_answers_differ_within_a_run_and_not_between_runs(
    ours: Any, model: LanguageModel
) -> None:
    from lm_eval.api.instance import Instance

    from lfm2_deploy.contracts import ignore_progress
    from lfm2_deploy.evaluation.adapter import HarnessModel

    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    requests = [Instance("generate_until", {}, ("And he said", settings), 0)] * 4
    first = ours.generate_until(requests)
    assert len(set(first)) > 1
    assert HarnessModel(model, "demo", 1, ignore_progress).generate_until(requests) == first


def test_group_is_told_beside_its_tasks(model: LanguageModel, tmp_path: Path) -> None:
    group = (
        "group: both\ntask: [lfm2_demo_ending, lfm2_demo_last_word]\n"
        "aggregate_metric_list: [{metric: acc}]\n"
    )
    found = run(model, "both", folder=write_task(tmp_path, group))
    ending, last_word, both = found.tasks
    assert (both.name, both.samples) == ("both", 6)
    figures = [task.metrics[index].value for task, index in ((ending, 0), (last_word, 1))]
    assert both.metrics[0].value == pytest.approx(sum(figures) / 2)


def test_task_asked_for_twice_is_refused(tmp_path: Path) -> None:
    folder = write_task(tmp_path, "group: both\ntask: [lfm2_demo_ending, lfm2_demo_last_word]\n")
    with pytest.raises(EvaluationError, match="lfm2_demo_ending, which is asked for already"):
        load_tasks(["lfm2_demo_ending", "both"], folder)


def test_task_that_needs_the_network_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'somebody/data' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    task = (
        "task: far\ndataset_path: somebody/data\noutput_type: multiple_choice\ntest_split: test\n"
    )
    with pytest.raises(EvaluationError) as failure:
        load_tasks(["far"], write_task(tmp_path, task))
    message = str(failure.value)
    for words in ("task far downloads", "Couldn't reach", "go online", "eval --list"):
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: bad\nunsafe_code: true\n", "runs code that the model writes"),
        ("task: bad\ndoc_to_text: !function nowhere.f\n", "needs nowhere, which is not installed"),
        ("task: bad\noutput_type: nonsense\n", "task bad cannot be loaded"),
    ],
)
def test_task_that_cannot_be_loaded_is_told_in_a_line(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(EvaluationError, match=words):
        load_tasks(["bad"], write_task(tmp_path, text))
