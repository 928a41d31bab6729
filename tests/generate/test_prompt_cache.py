"""A prompt that continues, repeats or edits an earlier one computes only what is new."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from lfm2_deploy.contracts import Capabilities
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.generate import LanguageModel
from lfm2_deploy.prompt_cache import PromptCache
from lfm2_deploy.tokenizer import Tokenizer
from runtimes.fake import FakeRuntime, hash_logits

from .scripts import VOCAB, build, calls

A = list(range(200, 220))
B = list(range(300, 310))


@pytest.fixture
def model(tokenizer: Tokenizer) -> LanguageModel:
    """A model whose every token depends on all before it, in a context of its own size."""
    loaded = build(tokenizer, hash_logits(VOCAB))
    loaded.runtime = FakeRuntime(hash_logits(VOCAB), vocab_size=VOCAB, context_length=2000)
    return loaded


def ask(model: LanguageModel, ids: list[int], cache: PromptCache | None, **options: Any) -> Any:
    options = {"max_new_tokens": 6, "ignore_eos": True, **options}
    return model.generate(ids, cache=cache, **options)


def prefilled(model: LanguageModel) -> list[list[int]]:
    return [what[0] for kind, what in calls(model) if kind == "prefill"]


def same_as_alone(model: LanguageModel, ids: list[int], answer: Any) -> None:
    assert answer.token_ids == ask(model, ids, None).token_ids


def test_next_turn_prefills_only_what_is_new(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache)
    ids = [*A, *first.token_ids, *B]
    second = ask(model, ids, cache)
    # The last token of an answer was sampled and never appended.
    assert prefilled(model) == [A, [first.token_ids[-1], *B]]
    assert (first.reused_tokens, second.reused_tokens) == (0, len(A) + 5)
    same_as_alone(model, ids, second)


def test_regenerating_prefills_nothing(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache)
    again = ask(model, A, cache)
    other = ask(model, A, cache, temperature=5.0, seed=1)
    assert prefilled(model) == [A]
    assert again.reused_tokens == len(A)
    assert again.token_ids == first.token_ids != other.token_ids
    assert other.token_ids == ask(model, A, None, temperature=5.0, seed=1).token_ids


def test_edited_turn_goes_back_to_where_it_differs(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache)
    turn = [*A, *first.token_ids]
    ask(model, [*turn, *B], cache)
    edited = [*turn, *reversed(B)]
    answer = ask(model, edited, cache)
    # Back to the end of the first prompt, the last mark before the edit.
    assert answer.reused_tokens == len(A)
    same_as_alone(model, edited, answer)


def test_answer_that_the_template_writes_otherwise_is_computed_anew(model: LanguageModel) -> None:
    # As with templates that drop old <think> parts, or where text is tokenized differently.
    cache = PromptCache(model.runtime)
    ask(model, A, cache)
    rewritten = [*A, 77, 78, *B]
    answer = ask(model, rewritten, cache)
    assert answer.reused_tokens == len(A)
    same_as_alone(model, rewritten, answer)


def test_two_conversations_keep_a_branch_each(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    one, two = [*A], [*reversed(A)]
    for _ in range(3):
        for ids in (one, two):
            answer = ask(model, ids, cache)
            same_as_alone(model, ids, answer)
            ids += [*answer.token_ids, 5]
    assert answer.reused_tokens > len(A)


def test_conversations_with_a_common_beginning_fork(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    system = A
    first = ask(model, system, cache, max_new_tokens=40)
    one = [*system, *first.token_ids, *B]
    ask(model, one, cache)
    other = ask(model, [*system, 9, 9], cache)
    assert other.reused_tokens == len(system)
    # The first conversation is still there, whole.
    again = ask(model, [*one, 5], cache)
    assert again.reused_tokens >= len(one)
    same_as_alone(model, [*one, 5], again)


def test_branch_used_longest_ago_makes_room(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime, branches=2)
    for first in (1, 2, 3):
        ask(model, [first, *A], cache)
    assert len(model.runtime.sessions) == 2  # type: ignore[attr-defined]
    assert ask(model, [3, *A, 4], cache).reused_tokens > 0
    assert ask(model, [1, *A, 4], cache).reused_tokens == 0


def test_long_prompt_can_be_gone_back_into(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    ids = [i % 4000 for i in range(1500)]
    ask(model, ids, cache)
    changed = [*ids[:1200], 9, *ids[1201:]]
    answer = ask(model, changed, cache)
    assert answer.reused_tokens == 1024  # pieces of 512
    same_as_alone(model, changed, answer)


def test_long_answer_can_be_gone_back_into(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache, max_new_tokens=400)
    cut = [*A, *first.token_ids[:350], 9]
    answer = ask(model, cut, cache)
    assert answer.reused_tokens == len(A) + 256
    same_as_alone(model, cut, answer)


def test_abandoned_answer_does_no_harm(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    stream = model.stream(A, cache=cache, max_new_tokens=50, ignore_eos=True)
    list(islice(stream, 3))
    with pytest.raises(GenerationError, match="another generation is using this prompt cache"):
        ask(model, A, cache)
    stream.close()  # type: ignore[attr-defined]
    ids = [*A, *B]
    same_as_alone(model, ids, ask(model, ids, cache))


def test_stream_that_never_began_does_not_keep_the_cache(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    stream = model.stream(A, cache=cache)
    assert ask(model, A, cache).token_ids
    del stream


def test_failure_in_the_middle_of_an_answer_leaves_a_cache_that_works(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PromptCache(model.runtime)
    ask(model, A, cache)
    session = model.runtime.sessions[0]  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "decode", lambda tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(model, [*A, *B], cache)
    monkeypatch.undo()
    ids = [*A, *B, 1]
    answer = ask(model, ids, cache)
    assert answer.reused_tokens == len(A) + len(B)
    same_as_alone(model, ids, answer)


def test_looking_ahead_and_the_cache_work_together(model: LanguageModel) -> None:
    cache = PromptCache(model.runtime)
    ids = A * 3
    for _ in range(3):
        answer = ask(model, ids, cache, prompt_lookup_num_tokens=8, max_new_tokens=30)
        plain = ask(model, ids, None, max_new_tokens=30)
        assert answer.token_ids == plain.token_ids
        ids = [*ids, *answer.token_ids, *A]


@pytest.mark.parametrize(
    ("able", "reused"),
    [
        (Capabilities(True, False, 0, True), len(A) + 5),  # it can append, and not go back
        (Capabilities(False, False, 0, True), 0),  # appending starts from nothing
    ],
)
def test_runtime_that_cannot_go_back_computes_anew(
    tokenizer: Tokenizer, able: Capabilities, reused: int
) -> None:
    model = build(tokenizer, hash_logits(VOCAB), capabilities=able)
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache)
    ids = [*A, *first.token_ids, *B]
    going_on = ask(model, ids, cache)
    assert going_on.reused_tokens == reused
    same_as_alone(model, ids, going_on)
    again = ask(model, A, cache)
    assert again.reused_tokens == 0
    same_as_alone(model, A, again)


def test_cache_of_another_model_is_refused(model: LanguageModel, tokenizer: Tokenizer) -> None:
    other = build(tokenizer, hash_logits(VOCAB))
    with pytest.raises(GenerationError, match="another model"):
        model.generate(A, cache=PromptCache(other.runtime))


def test_cache_and_session_are_not_taken_together(model: LanguageModel) -> None:
    with pytest.raises(GenerationError, match="one of the two"):
        model.generate(A, cache=PromptCache(model.runtime), session=model.runtime.open())


def test_cache_without_room_for_one_is_refused(model: LanguageModel) -> None:
    with pytest.raises(GenerationError, match="branches is 0"):
        PromptCache(model.runtime, branches=0)


def appending_singly(model: LanguageModel) -> LanguageModel:
    """The same, where several tokens cannot be appended."""
    able = Capabilities(
        appends_many=False, rewinds=True, max_batch_size=0, scores_all=True, tokens_per_step=4
    )
    runtime = model.runtime
    assert isinstance(runtime, FakeRuntime)
    model.runtime = FakeRuntime(
        runtime.next_logits, vocab_size=VOCAB, context_length=2000, capabilities=able
    )
    return model


def test_short_turn_goes_on_token_by_token_where_several_cannot_be_appended(
    model: LanguageModel,
) -> None:
    model = appending_singly(model)
    cache = PromptCache(model.runtime)
    first = ask(model, A, cache)
    ids = [*A, *first.token_ids, 300]
    second = ask(model, ids, cache)
    assert prefilled(model) == [A, [first.token_ids[-1]], [300]]
    same_as_alone(model, ids, second)


def test_long_turns_of_one_conversation_keep_one_branch_though_read_anew(
    model: LanguageModel,
) -> None:
    # Each took a branch of its own, and drove out other conversations.
    model = appending_singly(model)
    cache, ids = PromptCache(model.runtime), list(A)
    for turn in range(4):
        answer = ask(model, ids, cache)
        same_as_alone(model, ids, answer)
        ids = [*ids, *answer.token_ids, *range(400 + 50 * turn, 440 + 50 * turn)]
    assert len(cache._pool._branches) == 1
