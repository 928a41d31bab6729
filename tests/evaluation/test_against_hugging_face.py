"""Our adapter beside the harness's own Hugging Face backend, on the same weights in float32.

The bundle runs in ONNX Runtime, the checkpoint in transformers; requests are the same objects.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="not run: lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate as run_harness

from lfm2_deploy.evaluation.harness import load_tasks, quiet

# So many questions of each task.
FEW = 6
# Two float32 implementations: logits differ by 1e-5 or so, and a score is a sum of some of them.
CLOSE = 1e-3
LONG = "And it happened in those days, that he went through the grain fields. " * 200
PAIRS = [
    ("He went out of the city and came to the", " sea"),
    ("He went out of the city and came to the", " house of his father, and his brothers."),
    ("He went out of the city and came to the", " house"),
    ("The United States of", " America"),  # what it would write itself
    ("trailing spaces go to the answer  ", "that follows"),
    ("", "A text without a context"),
    ("<|startoftext|>A context that begins with the start token", " already"),
    ("Grüße, 漢", "字 und 🙂"),
    ("one wo", "rd cut in two"),
    (LONG, " The end"),  # cut at the left
    ("line\n", "\nbreaks\n"),
]
TEXTS = ["A short text.", LONG, "", "<|startoftext|>already begun", "漢字🙂"]


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def test_tokens_are_the_same(ours: Any, hugging_face: Any) -> None:
    assert ours.max_length == hugging_face.max_length
    assert ours.prefix_token_id == hugging_face.prefix_token_id
    assert ours.eot_token_id == hugging_face.eot_token_id
    for text in TEXTS:
        for special in (None, True, False):
            expected = hugging_face.tok_encode(text, add_special_tokens=special)
            assert ours.tok_encode(text, add_special_tokens=special) == expected
    for context, continuation in PAIRS:
        if context:
            expected = hugging_face._encode_pair(context, continuation)
            assert ours._encode_pair(context, continuation) == expected


def test_scores_of_continuations_are_the_same(ours: Any, hugging_face: Any) -> None:
    requests = ask("loglikelihood", *PAIRS)
    expected = hugging_face.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests)
    assert len({greedy for _, greedy in expected}) == 2  # both happen
    for (logprob, greedy), (true_logprob, true_greedy) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(true_logprob, abs=CLOSE)
        assert greedy is true_greedy
    assert ours.notes == [
        "1 of 11 requests were longer than the context of 2,048 tokens and lost their beginning"
    ]


def test_scores_of_whole_texts_are_the_same(ours: Any, hugging_face: Any) -> None:
    requests = ask("loglikelihood_rolling", *((text,) for text in TEXTS if text))
    assert len(ours.tok_encode(LONG)) > 2048  # in windows
    expected = hugging_face.loglikelihood_rolling(requests, disable_tqdm=True)
    # Thousands of tokens, whose differences add up.
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=CLOSE, rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["."], "max_gen_toks": 24},
        {
            "until": [" and", "<|im_end|>"],
            "max_gen_toks": 40,
            "do_sample": False,
            "temperature": 0.0,
        },
        {"until": [], "max_gen_toks": 12},
        {"until": ["\n"], "max_gen_toks": 1},
    ],
)
def test_greedy_answers_are_the_same(ours: Any, hugging_face: Any, settings: dict) -> None:
    contexts = ["He went out of the city and", "<|startoftext|>Then Jesus said to them, “", LONG]
    requests = ask("generate_until", *((context, dict(settings)) for context in contexts))
    expected = hugging_face.generate_until(requests, disable_tqdm=True)
    assert any(expected)
    assert ours.generate_until(requests) == expected


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_are_laid_out_the_same(
    ours: Any, hugging_face: Any, add_generation_prompt: bool
) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who was Ruth?"},
        {"role": "assistant", "content": "A woman of Moab"},
    ]
    chat = chat[:2] if add_generation_prompt else chat
    expected = hugging_face.apply_chat_template(chat, add_generation_prompt)
    assert ours.apply_chat_template(chat, add_generation_prompt) == expected
    assert ours.chat_template(True) == hugging_face.chat_template(True)
    assert ours.chat_template(False) is None


def test_figures_of_tasks_are_the_same(ours: Any, hugging_face: Any) -> None:
    tasks = load_tasks(["lfm2_demo_*"])
    figures = []
    for backend in (ours, hugging_face):
        for task in tasks["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        with quiet():
            raw = run_harness(backend, tasks, limit=FEW, bootstrap_iters=0)
        figures.append(raw["results"])
    found, expected = figures
    assert found.keys() == expected.keys()
    for name, metrics in expected.items():
        for metric, value in metrics.items():
            close = pytest.approx(value, rel=CLOSE) if isinstance(value, float) else value
            assert found[name][metric] == close, (name, metric)
    assert 0 < found["lfm2_demo_ending"]["acc,none"] < 1
