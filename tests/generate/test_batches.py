"""Batches, cancelling, chats and sessions: none of them changes an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.completion import Completion
from lfm2_deploy.contracts import Capabilities, FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError, TemplateError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.tokenizer import Tokenizer
from lfm2_deploy.tokens import generate_tokens
from runtimes.fake import FakeRuntime, hash_logits, scripted_logits

from .scripts import BOS, CONTEXT, EOS, PROMPT, VOCAB, Script, build, byte_ids, calls

RAGGED = [[BOS, 300], PROMPT, [BOS, *range(200, 220)]]


Replies = dict[tuple[int, ...], list[int]]


def without_times(completion: Completion) -> tuple[Any, ...]:
    return (
        completion.text,
        completion.token_ids,
        completion.finish_reason,
        completion.stop,
        completion.prompt_tokens,
        completion.logprobs,
    )


# Batches.


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 11, "top_k": 40}])
def test_ragged_batch_answers_each_prompt_as_alone(
    random_model: LanguageModel, sampling: dict[str, Any]
) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 12,
        "repetition_penalty": 1.2,
        "logprobs": 2,
        **sampling,
    }
    together = random_model.generate_batch(RAGGED, **options)
    alone = [random_model.generate(prompt, **options) for prompt in RAGGED]
    assert [without_times(answer) for answer in together] == [without_times(a) for a in alone]
    assert len({answer.token_ids for answer in alone}) == len(RAGGED)


def test_repetition_penalty_counts_each_rows_own_tokens(tokenizer: Tokenizer) -> None:
    # Always 50 before 51; the penalty halves the logits of those a row holds already.
    def next_logits(_: Sequence[int]) -> FloatArray:
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[[50, 51]] = 4, 3
        return logits

    model = build(tokenizer, next_logits)
    answers = model.generate_batch([[BOS, 50], [BOS, 60]], repetition_penalty=2.0, max_new_tokens=2)
    assert [answer.token_ids for answer in answers] == [(51, 50), (50, 51)]


def test_rows_without_a_limit_fill_the_context_each_on_its_own(tokenizer: Tokenizer) -> None:
    model = build(tokenizer, scripted_logits(VOCAB, {}, then=50))
    answers = model.generate_batch(RAGGED)
    assert [len(a.token_ids) for a in answers] == [CONTEXT - len(row) for row in RAGGED]
    assert {a.finish_reason for a in answers} == {"length"}


def test_row_that_ended_is_left_out_of_later_steps(tokenizer: Tokenizer) -> None:
    replies: Replies = {(BOS, 20): [50, 51, 52], (BOS, 30): [60], (BOS, 40): [70, 71]}
    model = build(tokenizer, scripted_logits(VOCAB, replies, then=EOS))
    answers = model.generate_batch([list(prompt) for prompt in replies])
    assert [a.token_ids for a in answers] == [(*reply, EOS) for reply in replies.values()]
    assert calls(model) == [
        ("prefill", [[BOS, 20], [BOS, 30], [BOS, 40]]),
        ("decode", [50, 60, 70]),
        ("decode", [51, None, 71]),
        ("decode", [52, None, None]),
    ]


def test_row_that_met_a_stop_string_is_left_out_of_later_steps(tokenizer: Tokenizer) -> None:
    first, second = byte_ids(tokenizer, "a#b"), byte_ids(tokenizer, "cde")
    replies: Replies = {(BOS, 20): first, (BOS, 30): second}
    model = build(tokenizer, scripted_logits(VOCAB, replies, then=EOS))
    answers = model.generate_batch([[BOS, 20], [BOS, 30]], stop="#")
    assert [(a.text, a.stop) for a in answers] == [("a", "#"), ("cde", None)]
    assert [call for _, call in calls(model)[2:]] == [[None, second[1]], [None, second[2]]]


def test_batch_streams_rows_in_turn_with_one_completion_each(tokenizer: Tokenizer) -> None:
    replies: Replies = {(BOS, 20): [50, 51], (BOS, 30): [60]}
    model = build(tokenizer, scripted_logits(VOCAB, replies, then=EOS))
    chunks = list(model.stream_batch([[BOS, 20], [BOS, 30]]))
    assert [(c.row, c.token_id, c.completion is not None) for c in chunks] == [
        (0, 50, False),
        (1, 60, False),
        (0, 51, False),
        (1, EOS, True),
        (0, EOS, True),
    ]


def test_more_prompts_than_the_runtime_takes_are_refused(script: Script) -> None:
    two_rows = Capabilities(appends_many=True, rewinds=True, max_batch_size=2, scores_all=True)
    model = script("Hello", capabilities=two_rows)
    assert [a.text for a in model.generate_batch([PROMPT, PROMPT])] == ["Hello", "Hello"]
    with pytest.raises(GenerationError, match=r"3 prompts at once.*takes 2.*groups of 2"):
        model.stream_batch([PROMPT] * 3)


def test_runtime_without_capabilities_still_generates(script: Script) -> None:
    model = script("Hello", capabilities=Capabilities(False, False, 1, False))
    assert model.generate(PROMPT).text == "Hello"


# Cancelling.


def test_cancelled_before_the_start_runs_nothing(script: Script) -> None:
    model, cancel = script("Hello"), threading.Event()
    cancel.set()
    answers = model.generate_batch([PROMPT, PROMPT], cancel=cancel)
    assert [(a.text, a.token_ids, a.finish_reason) for a in answers] == [("", (), "cancelled")] * 2
    assert calls(model) == []


def test_cancelled_in_the_middle_keeps_what_there_is(script: Script) -> None:
    model, cancel = script("Hello"), threading.Event()
    chunks = []
    for chunk in model.stream(PROMPT, cancel=cancel):
        chunks.append(chunk)
        if len(chunks) == 3:
            cancel.set()
    completion = chunks[-1].completion
    assert completion is not None
    assert (completion.text, completion.finish_reason) == ("Hel", "cancelled")
    assert "".join(chunk.text for chunk in chunks) == "Hel"
    assert chunks[-1].token_id is None
    assert len(completion.token_ids) == 3
    assert len(calls(model)) == 3


def test_cancelled_rows_are_only_those_that_had_not_ended(tokenizer: Tokenizer) -> None:
    replies: Replies = {(BOS, 20): [50, 51, 52], (BOS, 30): []}
    model = build(tokenizer, scripted_logits(VOCAB, replies, then=EOS))
    cancel = threading.Event()
    finished = {}
    for chunk in model.stream_batch([[BOS, 20], [BOS, 30]], cancel=cancel):
        cancel.set()
        if chunk.completion:
            finished[chunk.row] = chunk.completion.finish_reason
    assert finished == {0: "cancelled", 1: "stop"}


# Chats and sessions.


def test_chat_is_encoded_with_one_start_token(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    prompt = [BOS, *tokenizer.encode(text, add_special_tokens=False)]
    model = build(
        tokenizer, scripted_logits(VOCAB, {tuple(prompt): byte_ids(tokenizer, "Hi")}, EOS)
    )
    for answer in (model.chat(messages), model.generate(messages)):
        assert (answer.text, answer.prompt_tokens) == ("Hi", len(prompt))
    assert calls(model)[0] == ("prefill", [prompt])


def test_chat_passes_tools_and_template_options_on(script: Script) -> None:
    model = script("Hello")
    messages = [{"role": "user", "content": "Hello"}]
    ids = model.encode_prompt(messages, tools=[{"name": "clock"}], add_generation_prompt=False)
    text = model.tokenizer.decode(ids, skip_special_tokens=False)
    assert 'List of tools: <|tool_list_start|>[{"name": "clock"}]<|tool_list_end|>' in text
    assert text.endswith("Hello<|im_end|>\n")
    model.chat(messages, tools=[{"name": "clock"}], max_new_tokens=1)
    opening = model.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    assert calls(model)[0] == ("prefill", [[*ids, *opening]])


def test_plain_text_is_encoded_with_its_start_token(script: Script) -> None:
    model = script("Hello")
    bare = model.tokenizer.encode("Once upon", add_special_tokens=False)
    assert model.encode_prompt("Once upon") == [BOS, *bare]


def test_chat_with_a_base_model_is_refused(tokenizer: Tokenizer) -> None:
    runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB)
    model = LanguageModel(runtime, tokenizer)
    with pytest.raises(TemplateError, match="no chat template"):
        model.chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(GenerationError, match="the prompt is empty"):
        model.generate([])


def test_malformed_messages_are_refused(script: Script) -> None:
    with pytest.raises(TemplateError, match="message 0 has no 'role'"):
        script("Hello").generate([{"content": "Hello"}])


def test_session_is_reused_and_emptied_first(script: Script) -> None:
    model = script("Hello")
    session = model.runtime.open()
    first, second = (model.generate(PROMPT, session=session) for _ in range(2))
    assert first.text == second.text == "Hello"
    assert isinstance(model.runtime, FakeRuntime)
    assert len(model.runtime.sessions) == 1
    # The end-of-turn token is sampled and never appended.
    assert session.lengths == (len(PROMPT) + 5,)


def test_fresh_session_is_only_as_large_as_the_request_needs(script: Script) -> None:
    model = script("Hello")
    model.generate_batch([PROMPT, [BOS] * 9], max_new_tokens=5)
    model.generate(PROMPT)
    assert isinstance(model.runtime, FakeRuntime)
    assert [s.capacity for s in model.runtime.sessions] == [14, CONTEXT]


def test_session_of_other_size_is_refused(script: Script) -> None:
    model = script("Hello")
    with pytest.raises(GenerationError, match="2 prompts for a session of 1 rows"):
        model.generate_batch([PROMPT, PROMPT], session=model.runtime.open(1))


def test_tokens_continue_what_a_session_already_holds() -> None:
    seen: list[tuple[int, ...]] = []

    def next_logits(history: Sequence[int]) -> FloatArray:
        seen.append(tuple(history))
        return scripted_logits(VOCAB, {}, then=50)(history)

    session = FakeRuntime(next_logits, vocab_size=VOCAB, context_length=CONTEXT).open(1, 8)
    session.prefill([[BOS, 20]])
    events = list(generate_tokens(session, [[30, 31]], GenerationOptions()))
    assert [event.token_id for event in events] == [50] * 4
    assert [event.finish_reason for event in events] == [None, None, None, "length"]
    assert seen[-1] == (BOS, 20, 30, 31, 50, 50, 50)
    with pytest.raises(ContextOverflowError):
        generate_tokens(session, [[30]], GenerationOptions())


def test_long_prompt_is_cancelled_between_its_pieces(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfm2_deploy.generate._PREFILL_SLICE", 2)
    model, cancel = script("Hello"), CancelAt(2)
    answer = model.generate([1, 2, 3, 4, 5, 6, 8], cancel=cancel)
    assert (answer.token_ids, answer.finish_reason) == ((), "cancelled")
    assert calls(model) == [("prefill", [[1, 2]]), ("prefill", [[3, 4]])]


def test_prompts_in_pieces_give_what_whole_ones_give(
    random_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[1, 2, 3, 4, 5], [6], [8, 9, 10]]
    whole = random_model.generate_batch(prompts, max_new_tokens=8)
    monkeypatch.setattr("lfm2_deploy.generate._PREFILL_SLICE", 2)
    pieces = random_model.generate_batch(prompts, max_new_tokens=8)
    assert list(map(without_times, pieces)) == list(map(without_times, whole))
    assert ("prefill", [[3, 4], [], [10]]) in calls(random_model)


def test_chat_with_tools_keeps_the_marks_of_a_call(tokenizer: Tokenizer) -> None:
    start, end = (tokenizer.token_id(f"<|tool_call_{part}|>") for part in ("start", "end"))
    assert start is not None
    assert end is not None
    reply = [start, *byte_ids(tokenizer, "[now()]"), end]
    messages = [{"role": "user", "content": "When?"}]
    tools = [{"name": "now", "parameters": {}}]
    model = build(tokenizer, hash_logits(VOCAB))
    prompt = tuple(model.encode_prompt(messages, tools=tools))
    model = build(tokenizer, scripted_logits(VOCAB, {prompt: reply}, EOS))
    assert model.chat(messages, tools=tools).text == "<|tool_call_start|>[now()]<|tool_call_end|>"
    assert model.chat(messages, tools=tools, skip_special_tokens=True).text == "[now()]"


class CancelAt:
    """A signal that is set from its n-th question after the first on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0
