"""One prompt becomes an answer: where it ends, and how it streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.contracts import Capabilities, FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.generate import LanguageModel, choose_slice
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.sampling import SamplingOptions, measure_logprobs
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import hash_logits

from .scripts import BOS, CONTEXT, EOS, OTHER_EOS, PROMPT, VOCAB, Script, build, byte_ids, calls

# How an answer ends.


def test_greedy_follows_the_script_until_the_end_of_turn(script: Script) -> None:
    model = script("Hello")
    answer = model.generate(PROMPT)
    assert answer.text == "Hello"
    assert answer.token_ids == (*byte_ids(model.tokenizer, "Hello"), EOS)
    assert (answer.finish_reason, answer.stop) == ("stop", None)
    assert answer.prompt_tokens == len(PROMPT)
    assert answer.logprobs is None
    assert answer.prefill_seconds > 0
    assert answer.decode_seconds > 0


def test_one_step_is_run_for_each_token_but_the_last(script: Script) -> None:
    model = script([50, 51])
    model.generate(PROMPT)
    assert calls(model) == [("prefill", [PROMPT]), ("decode", [50]), ("decode", [51])]


def test_end_of_turn_tokens_of_model_and_options_end_alike(script: Script) -> None:
    model = script([50, OTHER_EOS, 51])
    assert model.generate(PROMPT).token_ids == (50, OTHER_EOS, 51, EOS)
    assert model.generate(PROMPT, eos_token_ids=OTHER_EOS).token_ids == (50, OTHER_EOS)


def test_end_of_turn_token_that_is_not_special_is_left_out_of_the_text(script: Script) -> None:
    model = script("Hi!")
    mark = byte_ids(model.tokenizer, "!")[0]
    answer = model.generate(PROMPT, stop_token_ids=mark)
    assert (answer.text, answer.token_ids[-1], answer.finish_reason) == ("Hi", mark, "stop")


def test_ignore_eos_goes_on_but_stop_tokens_still_end(script: Script) -> None:
    model = script([50, EOS, 51, OTHER_EOS, 52])
    going_on: dict[str, Any] = {
        "ignore_eos": True,
        "eos_token_ids": [OTHER_EOS],
        "max_new_tokens": 5,
    }
    answer = model.generate(PROMPT, **going_on)
    assert (answer.token_ids, answer.finish_reason) == ((50, EOS, 51, OTHER_EOS, 52), "length")
    answer = model.generate(PROMPT, **going_on, stop_token_ids=[EOS])
    assert (answer.token_ids, answer.finish_reason) == ((50, EOS), "stop")


def test_max_new_tokens_ends_the_answer(script: Script) -> None:
    model = script("Hello")
    answer = model.generate(PROMPT, max_new_tokens=3)
    assert (answer.text, len(answer.token_ids), answer.finish_reason) == ("Hel", 3, "length")


def test_end_of_turn_at_the_last_token_counts_as_stop(script: Script) -> None:
    assert script("Hello").generate(PROMPT, max_new_tokens=6).finish_reason == "stop"


def test_answer_ends_where_the_context_is_full(script: Script) -> None:
    answer = script([], then=50).generate(PROMPT)
    assert len(answer.token_ids) == CONTEXT - len(PROMPT)
    assert answer.finish_reason == "length"


def test_prompt_and_answer_may_fill_the_context_exactly(script: Script) -> None:
    model = script([], then=50)
    answer = model.generate(PROMPT, max_new_tokens=CONTEXT - len(PROMPT))
    assert len(answer.token_ids) == CONTEXT - len(PROMPT)


def test_prompt_that_leaves_room_for_one_token_gets_one(script: Script) -> None:
    answer = script([], then=50).generate([BOS] * (CONTEXT - 1))
    assert (answer.token_ids, answer.finish_reason) == ((50,), "length")


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([[BOS] * CONTEXT], None, "the prompt has 64 tokens"),
        ([[BOS] * (CONTEXT + 9)], None, "the prompt has 73 tokens"),
        ([PROMPT], 61, r"max_new_tokens is 61, 65 in all.* at most 60"),
        ([PROMPT, [BOS] * 60], 5, "prompt 1 has 60 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    script: Script, prompts: list[list[int]], max_new_tokens: int | None, message: str
) -> None:
    model = script("Hello")
    with pytest.raises(ContextOverflowError, match=message):
        model.stream_batch(prompts, max_new_tokens=max_new_tokens)
    assert calls(model) == []


def test_what_does_not_fit_the_callers_session_is_refused(script: Script) -> None:
    model = script("Hello")
    with pytest.raises(ContextOverflowError, match="the context holds 8"):
        model.generate(PROMPT, session=model.runtime.open(1, 8), max_new_tokens=5)
    assert [name for name, _ in calls(model)] == ["reset"]


def test_empty_prompt_is_refused(script: Script) -> None:
    model = script("Hello")
    with pytest.raises(GenerationError, match="there is no prompt"):
        model.generate_batch([])
    with pytest.raises(GenerationError, match="the prompt is empty"):
        model.generate([])
    with pytest.raises(GenerationError, match="prompt 1 is empty"):
        model.generate_batch([PROMPT, []])
    assert calls(model) == []


def test_empty_text_is_its_start_token(script: Script) -> None:
    assert script("Hello").encode_prompt("") == [BOS]


@pytest.mark.parametrize("stray", [-1, VOCAB])
def test_id_outside_the_vocabulary_is_refused(script: Script, stray: int) -> None:
    model = script("Hello")
    with pytest.raises(GenerationError, match=f"token {stray}, .* ends at 4095"):
        model.generate([BOS, stray])
    assert calls(model) == []


def test_unknown_option_is_refused(script: Script) -> None:
    with pytest.raises(GenerationError, match="no generation option 'max_tokens'"):
        script("Hello").generate(PROMPT, max_tokens=3)


def test_models_defaults_apply_and_overrides_win(script: Script) -> None:
    model = script("Hello")
    model.defaults = GenerationOptions(max_new_tokens=2)
    assert model.generate(PROMPT).text == "He"
    assert model.generate(PROMPT, max_new_tokens=3).text == "Hel"
    assert model.generate(PROMPT, GenerationOptions()).text == "Hello"


# Stop strings and text.


def test_stop_string_across_tokens_ends_the_answer_and_is_left_out(script: Script) -> None:
    model = script("one END two")
    answer = model.generate(PROMPT, stop="END")
    assert (answer.text, answer.finish_reason, answer.stop) == ("one ", "stop", "END")
    assert len(answer.token_ids) == len("one END")
    # The token that completes the stop string is never run.
    assert len(calls(model)) == len("one END")


def test_stop_string_left_incomplete_is_part_of_the_text(script: Script) -> None:
    answer = script("one EN").generate(PROMPT, stop="END")
    assert (answer.text, answer.finish_reason, answer.stop) == ("one EN", "stop", None)
    answer = script("one END").generate(PROMPT, stop="END", max_new_tokens=6)
    assert (answer.text, answer.finish_reason, answer.stop) == ("one EN", "length", None)


def test_stop_string_at_the_last_token_counts_as_stop(script: Script) -> None:
    answer = script("one END").generate(PROMPT, stop="END", max_new_tokens=7)
    assert (answer.text, answer.finish_reason, answer.stop) == ("one ", "stop", "END")


def test_stop_string_of_a_special_token_needs_it_shown(script: Script) -> None:
    model = script([50, OTHER_EOS, 51])
    stop = model.tokenizer.decode([OTHER_EOS], skip_special_tokens=False)
    hidden = model.generate(PROMPT, stop=stop)
    assert (hidden.stop, hidden.token_ids) == (None, (50, OTHER_EOS, 51, EOS))
    shown = model.generate(PROMPT, stop=stop, skip_special_tokens=False)
    assert (shown.stop, shown.token_ids) == (stop, (50, OTHER_EOS))
    assert shown.text == model.tokenizer.decode([50])


@pytest.mark.parametrize("text", ["naïve 漢字🙂 e\u0301!", "🙂🙂", "plain"])
def test_chunks_join_to_the_text_and_cut_no_character(script: Script, text: str) -> None:
    model = script(text)
    chunks = list(model.stream(PROMPT))
    completion = chunks[-1].completion
    assert completion is not None
    assert "".join(chunk.text for chunk in chunks) == completion.text == text
    assert all("\ufffd" not in chunk.text for chunk in chunks)
    assert [chunk.text for chunk in chunks if chunk.text] == list(text)
    assert tuple(chunk.token_id for chunk in chunks) == completion.token_ids
    assert [chunk.completion for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_chunks_join_to_the_text_around_stop_strings(script: Script) -> None:
    text = "一二一二三 end"
    for stop, expected in (("二三", "一二一"), ("三四", text), ("一二三 ", "一二")):
        chunks = list(script(text).stream(PROMPT, stop=stop))
        completion = chunks[-1].completion
        assert completion is not None
        assert "".join(chunk.text for chunk in chunks) == completion.text == expected


def test_character_unfinished_at_the_end_shows_as_one_replacement(script: Script) -> None:
    model = script("a🙂")
    answer = model.generate(PROMPT, max_new_tokens=3)
    assert answer.text == "a\ufffd" == model.tokenizer.decode(answer.token_ids)


def test_streaming_runs_the_model_only_as_chunks_are_taken(script: Script) -> None:
    model = script("Hello")
    chunks = model.stream(PROMPT)
    assert calls(model) == []
    assert next(chunks).text == "H"
    assert len(calls(model)) == 1
    assert next(chunks).text == "e"
    assert len(calls(model)) == 2


# Log-probabilities and seeds.


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_logprobs_are_the_models_own_at_every_step(
    random_model: LanguageModel, temperature: float
) -> None:
    sampling = SamplingOptions(temperature, top_k=5, repetition_penalty=1.3, seed=0)
    options = GenerationOptions(max_new_tokens=6, sampling=sampling, logprobs=3)
    answer = random_model.generate(PROMPT, options)
    history, expected = list(PROMPT), []
    for token_id in answer.token_ids:
        expected.append(measure_logprobs(hash_logits(VOCAB)(history), token_id, 3))
        history.append(token_id)
    assert answer.logprobs == tuple(expected)
    chunks = list(random_model.stream(PROMPT, options))
    assert [chunk.logprobs for chunk in chunks] == expected


def test_logprobs_of_zero_list_the_chosen_token_alone(random_model: LanguageModel) -> None:
    answer = random_model.generate(PROMPT, max_new_tokens=3, logprobs=0)
    assert answer.logprobs is not None
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert [entry.top for entry in answer.logprobs] == [()] * 3


def test_same_seed_answers_the_same_and_another_does_not(random_model: LanguageModel) -> None:
    first, again, other = (
        random_model.generate(PROMPT, temperature=1.5, seed=seed, max_new_tokens=12).token_ids
        for seed in (3, 3, 4)
    )
    assert first == again != other


@pytest.mark.parametrize(("chunk", "expected"), [(0, 512), (128, 512), (100, 500), (600, 600)])
def test_prompts_are_cut_in_whole_chunks(chunk: int, expected: int) -> None:
    assert choose_slice(Capabilities(True, True, 0, True, 0, chunk)) == expected


def test_prompt_that_cannot_be_appended_to_is_not_cut() -> None:
    assert choose_slice(Capabilities(False, False, 0, True)) is None


def test_penalties_count_each_rows_own_answer(tokenizer: Tokenizer) -> None:
    def prefer(history: Sequence[int]) -> FloatArray:
        """Always the same logits, but for the row: its first token is liked best."""
        logits = np.zeros(VOCAB, np.float32)
        logits[[history[0], 200, 201]] = 3.0, 2.5, 2.0
        return logits

    model = build(tokenizer, prefer)
    options: dict[str, Any] = {"frequency_penalty": 1.0, "max_new_tokens": 6, "temperature": 0.0}
    answers = model.generate_batch([[100], [101, 200, 200]], **options)
    for first, answer in zip((100, 101), answers, strict=True):
        # 3, 2.5, 2 | 2, 2.5, 2 | 2, 1.5, 2 | 1, 1.5, 2 | 1, 1.5, 1 | 1, .5, 1
        assert answer.token_ids == (first, 200, first, 201, 200, first)


def test_penalties_are_the_same_when_looking_ahead(tokenizer: Tokenizer) -> None:
    options = {"frequency_penalty": 0.3, "presence_penalty": -0.5, "seed": 4, "temperature": 0.8}
    prompt = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
    answers = [
        build(tokenizer, hash_logits(VOCAB)).generate(
            prompt, max_new_tokens=30, prompt_lookup_num_tokens=ahead, ignore_eos=True, **options
        )
        for ahead in (0, 4)
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_bias_for_a_token_the_model_has_not_is_refused(random_model: LanguageModel) -> None:
    with pytest.raises(GenerationError, match=f"logit_bias names token {VOCAB}"):
        random_model.generate([1, 2], logit_bias={VOCAB: 1.0})
